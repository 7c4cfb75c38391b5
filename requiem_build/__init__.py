"""Requiem: a declarative build and pipeline runner whose every answer can be proven."""

__version__ = "0.1.0"
