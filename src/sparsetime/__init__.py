"""Neural networks that are sparse in time."""

__version__ = "0.1.0.dev0"
