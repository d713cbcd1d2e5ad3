"""Contenders that are not a `Storage`: each maps the stores' paths to coroutine functions."""
