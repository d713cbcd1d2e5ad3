"""The whole gateway of DeerFlow's distribution: our storage beside DeerFlow's own SQLite and PostgreSQL.

A scripted model answers at once, so that what is measured is the gateway and its storage. The client is
`langgraph-sdk`, as in its users' programs. Not a comparison of single operations: those are the other parts.
"""
