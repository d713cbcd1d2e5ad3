"""Recorded threads and their replay, for the command `deerflow-mongo demo`."""
