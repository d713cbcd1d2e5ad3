"""Puts a dataset into a database quickly, before anything is measured: as the stores would have left it."""
