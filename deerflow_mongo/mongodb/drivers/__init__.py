"""One thin adapter per driver behind the surface of `base.py`; each is imported only when it is chosen."""
