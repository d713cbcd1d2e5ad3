"""The driver contract on PyMongo's asyncio client, which shows that the contract itself is right."""

from __future__ import annotations

from pymongo import AsyncMongoClient

from .contract import DriverContract


class TestPyMongo(DriverContract):
    driver = "pymongo"
    client_class = AsyncMongoClient
