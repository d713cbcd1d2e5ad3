"""The stores: one module each, one server command per method."""
