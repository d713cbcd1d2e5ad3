"""Row <-> document, one module per collection: the only place that knows how a document looks."""
