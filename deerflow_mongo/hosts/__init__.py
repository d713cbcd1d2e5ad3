"""What plugs into a DeerFlow gateway: the state of its app layer, and in `gateway.py` the 2.x line whole."""

from .app_layer import app_state, storage_lifespan

__all__ = ["app_state", "storage_lifespan"]
