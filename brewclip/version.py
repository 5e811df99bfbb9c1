"""The version of the package, apart from the package itself, which loads what records it."""

__version__ = "0.1.0"
