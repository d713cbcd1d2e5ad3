"""`python -m deerflow_mongo.cli` is the command `deerflow-mongo`, as `python -m deerflow_mongo` is."""

from __future__ import annotations

from . import main

if __name__ == "__main__":
    main("python -m deerflow_mongo.cli")
