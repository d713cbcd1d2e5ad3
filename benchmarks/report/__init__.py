"""Reports of a results file: ratio tables, targets and charts."""

from .cases import SQL
from .document import compare, report, write_readmes, write_report

__all__ = ["SQL", "compare", "report", "write_readmes", "write_report"]
