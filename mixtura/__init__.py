"""mixtura: the mixture-of-experts toolkit for Python."""

__version__ = "0.1.0"
