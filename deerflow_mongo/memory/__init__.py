"""The backend `memory`: the storage contract on plain dicts, the reference for authors of backends."""
