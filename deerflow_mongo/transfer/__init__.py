"""Brings data of other stores into the storage. No host needs it; each module names what it reads."""
