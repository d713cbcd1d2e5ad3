"""`python -m deerflow_mongo.cli`, as the console script."""

from . import main

main()
