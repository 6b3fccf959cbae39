"""Commands for people: `outrider verify` and `outrider sign`. What they need is imported when they run."""
