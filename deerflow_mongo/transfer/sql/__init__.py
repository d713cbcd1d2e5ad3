"""Brings the data of DeerFlow's SQL databases into the storage.

`layouts.py` is the one place that knows DeerFlow's tables; how our documents look is not known here.
"""
