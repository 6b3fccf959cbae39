"""Decisions as pure functions of a snapshot: no I/O, no clock, no randomness."""
