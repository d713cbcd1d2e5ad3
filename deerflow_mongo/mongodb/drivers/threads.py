"""Runs a blocking call in a thread of its own.

Unlike `asyncio.to_thread`, which uses the event loop's default executor: a host's synchronous tools may fill
that for minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")


async def in_thread(call: Callable[[], _Result]) -> _Result:
    """What `call` returns or raises. When the waiting task is cancelled, the thread continues."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[_Result] = loop.create_future()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            result = context.run(call)
        except BaseException as error:  # noqa: BLE001 - it is raised to the waiting task
            _deliver(loop, lambda failure=error: answer.done() or answer.set_exception(failure))
        else:
            _deliver(loop, lambda: answer.done() or answer.set_result(result))

    threading.Thread(target=run, name="deerflow-mongo", daemon=True).start()
    return await answer


def _deliver(loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
        loop.call_soon_threadsafe(callback)
