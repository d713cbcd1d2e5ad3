"""The driver contract on Motor."""

from __future__ import annotations

from motor.motor_asyncio import AsyncIOMotorClient

from .contract import DriverContract


class TestMotor(DriverContract):
    driver = "motor"
    client_class = AsyncIOMotorClient
