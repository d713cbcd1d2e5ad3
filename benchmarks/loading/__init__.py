"""Bulk-loads a dataset into a database before measuring, in the form in which the stores write it."""
