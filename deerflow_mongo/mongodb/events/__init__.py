"""Run events: the store, the writer that numbers them, and who may use a thread."""
