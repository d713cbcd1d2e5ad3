"""Row <-> document, one module per collection: the only place that knows how a document looks.

Besides the rows, each module has the updates and pipelines of its collection. Their arguments are checked and
encoded by the caller (`encoding.py` and `stored_times.py` do both in one step); filters come from
`queries.py`.
"""
