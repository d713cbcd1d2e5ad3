"""LangGraph's checkpoints: every piece of a state is stored once, and a checkpoint refers to its pieces.

`saver.py` is LangGraph's interface; it and the modules that need LangGraph are imported at the first use.
"""
