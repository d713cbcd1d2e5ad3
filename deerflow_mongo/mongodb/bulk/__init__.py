"""Rows in bulk: exported by pages of their keys, and imported exactly as they are.

What becomes of a row is promised in `contract/bulk_rows.py`, how a document looks is in `documents/`.
"""
