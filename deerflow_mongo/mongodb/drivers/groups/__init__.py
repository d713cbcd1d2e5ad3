"""Calls that wait share commands: when, in `lane.py`; how, and what each of them is told, by kind.

Each call is told what a command of its own would have told it. Where the shared answer does not say, the call
was not carried out and goes alone: what the driver cannot encode, what the server refuses of several updates,
a document that only the server can compare with the query.
"""
