"""Checkpoint savers side by side: turns of a graph, reads, stored bytes and memory."""
