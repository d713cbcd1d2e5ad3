"""What a person asks of a whole database: lists, what runs now, and statistics of a period.

Only reads, for people and their tools: no host needs it, and no method of the contract is here.
"""
