"""DeerFlow's own storage interfaces over our stores, one module for each of them.

A module here needs DeerFlow when it is imported; importing this package does not. The adapters take the
contract's Protocols, so any backend works.
"""
