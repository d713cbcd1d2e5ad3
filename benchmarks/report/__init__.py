"""Reports of a results file: ratio tables, targets and charts."""

from .document import report, write_readmes, write_report

__all__ = ["report", "write_readmes", "write_report"]
