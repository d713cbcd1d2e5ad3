"""The MongoDB backend of the contract."""
