"""What plugs into DeerFlow: the state of its app layer, and in `gateway.py` the whole released gateway."""

from .app_layer import app_state, storage_lifespan

__all__ = ["app_state", "storage_lifespan"]
