"""Commands for people. What they need is imported when they run."""
