"""Contenders of the benchmarks that are no `Storage`: each gives the stores' paths as coroutine functions."""
