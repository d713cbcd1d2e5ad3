"""Spans, counters and records of slow operations; imported only by a storage that is configured to have them.

`wrapping.py` attaches it, `metrics.py` has what is counted. No payload, no text and no address of a user is
recorded: attributes are names, counts, times and the ids of threads and runs.
"""
