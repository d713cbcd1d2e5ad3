"""One storage's reference to its embedded server, which starts when the first client opens."""

from __future__ import annotations

import threading

from ...contract.errors import StorageClosedError
from ..config import MongoConfig
from ..drivers.threads import in_thread
from . import EmbeddedServer, start_embedded


class EmbeddedHold:
    """The storage's one reference to its embedded server, acquired when the first of its clients opens."""

    def __init__(self, config: MongoConfig) -> None:
        self._config = config
        self._starting = threading.Lock()  # acquired in threads only, for the duration of a start
        self._lock = threading.Lock()
        self._server: EmbeddedServer | None = None
        self._closed = False

    async def url(self) -> str:
        """The URL of the server, which is started, or shared with others, at the first use."""
        return await in_thread(self._started)

    async def release(self) -> None:
        with self._lock:
            self._closed = True
            server, self._server = self._server, None
        if server is not None:
            await in_thread(server.release)

    def _started(self) -> str:
        """Runs in a thread, which continues when the waiting task is cancelled."""
        with self._starting:
            server = self._server
            if server is None and not self._closed:
                server = self._start()
        if server is None:
            raise StorageClosedError
        return server.url

    def _start(self) -> EmbeddedServer | None:
        """The server, or None if the storage was closed meanwhile."""
        server = start_embedded(self._config.data_dir, mongod_path=self._config.mongod_path)
        with self._lock:
            if not self._closed:
                self._server = server
                return server
        server.release()
        return None
