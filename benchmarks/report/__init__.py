"""Reports of a results file: ratio tables, targets and charts."""

from .document import checkpoint_tables, report, tasks_tables, write_readmes, write_report

__all__ = ["checkpoint_tables", "report", "tasks_tables", "write_readmes", "write_report"]
