"""Reports of a results file: ratio tables, targets and charts."""

from .document import report, write_report
from .tables import summary

__all__ = ["report", "summary", "write_report"]
