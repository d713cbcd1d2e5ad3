"""A start that is refused ends with one sentence on standard error and exit code 3, not with a traceback.

uvicorn ends with this code where an application does not start. Older releases of its supervisor of several
workers, such as the one that DeerFlow main locks, would start the next worker for ever: they are stopped. A
refusal is an error of a configuration or of an unavailable
storage, which the operator mends, or DeerFlow's own `SystemExit` with a text. Everything else has its
traceback.
"""

from __future__ import annotations

import inspect
import multiprocessing
import os
import signal
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, NoReturn

from ..contract.errors import StorageConfigError, StorageUnavailableError

EXIT_CODE: Final = 3

_WORKER_MODULE: Final = "uvicorn._subprocess"
_FAILED: Final = "lifespan.startup.failed"


def exit_with(error: StorageConfigError) -> NoReturn:
    """End the process with the error's sentence, and the supervisor whose worker it is."""
    sys.stderr.write(f"error: {error}\n")
    sys.stderr.flush()
    supervisor = multiprocessing.parent_process()
    if supervisor is not None and supervisor.pid == os.getppid() and _is_supervised():
        os.kill(os.getppid(), signal.SIGTERM)  # as an operator stops it; no worker of it can start
    raise SystemExit(EXIT_CODE) from error


def _is_supervised() -> bool:
    """Whether this process is one of uvicorn's workers, and not the one that it restarts for new code."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == _WORKER_MODULE:
            return not getattr(frame.f_locals.get("config"), "should_reload", True)
        frame = frame.f_back
    return False


class StartupErrors:
    """ASGI middleware: the server logs a refused start's sentence, where it would log a traceback."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        async def send_sentence(message: MutableMapping[str, Any]) -> None:
            # Starlette sends this message while it handles the error.
            sentence = _sentence(sys.exception()) if message["type"] == _FAILED else None
            await send(message if sentence is None else {**message, "message": sentence})

        await self._app(scope, receive, send_sentence if scope["type"] == "lifespan" else send)


def _sentence(error: BaseException | None) -> str | None:
    """What the operator needs of a refusal; None for any other error."""
    if isinstance(error, StorageConfigError | StorageUnavailableError):
        return str(error)
    return error.code if isinstance(error, SystemExit) and isinstance(error.code, str) else None
