"""The version of the package: a module of its own, which any other may read."""

__version__ = "0.1.0"
