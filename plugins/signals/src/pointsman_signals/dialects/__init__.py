"""How providers write their quotas into headers: the table of dialects, and the reader of one answer's headers."""

from .reader import NOTHING, Dialect, Reader, Reading
from .table import DIALECTS, ENTRY_POINTS, DialectTable, installed_dialects

__all__ = ["DIALECTS", "ENTRY_POINTS", "NOTHING", "Dialect", "DialectTable", "Reader", "Reading", "installed_dialects"]
