"""Outrider owns the versions of node agents and moves fleets of nodes between them."""

__version__ = "0.1.0"
