"""LangGraph checkpoints of any size in the storage's database."""
