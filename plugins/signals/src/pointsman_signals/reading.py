"""The former place of ``Dialect``: distributions with dialects of their own may still import it from here."""

from .dialects import Dialect

__all__ = ["Dialect"]
