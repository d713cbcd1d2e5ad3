"""The run events' store against other ways to number and keep events, in one run on one machine.

Run it with `python -m benchmarks.run_events`. It starts the servers it needs, in temporary folders, and
prints ratios: absolute figures say more about the machine. A figure counts only if the numbers that were
given are unique and the database holds 1..n. SQLAlchemy and PostgreSQL are left out where they are not
installed.
"""
