"""The demo: a recorded thread, its replay on a storage, the consistency check, and what is printed."""
