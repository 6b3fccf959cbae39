"""Gather, plan, execute, report: the loop around the pure core."""
