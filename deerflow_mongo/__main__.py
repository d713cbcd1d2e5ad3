"""`python -m deerflow_mongo` is the command `deerflow-mongo`."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    main("python -m deerflow_mongo")
