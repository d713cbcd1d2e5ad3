"""What a file of results says, for people: ratio tables, targets and charts."""

from .document import report, write_report
from .tables import front_page

__all__ = ["front_page", "report", "write_report"]
