"""One thin adapter per driver behind `Driver` and `Collection`; each is imported only when it is chosen."""
