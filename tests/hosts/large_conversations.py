"""A second script of requests: conversations that are larger than a document of MongoDB can be.

Not in `http_script.py`, since they take seconds. The texts are the same in every run; a transcript has their
lengths and hashes in their place.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from typing import Any, cast

from .http_script import ALICE, NEW_PASSWORD, Browser, ClientFactory, Transcript, run_body

MESSAGE_BYTES, MESSAGES = 5 * 2**20, 6
IMAGE_BYTES, IMAGES = 2 * 10**6, 10

_MAX_TEXT = 10_000
"""A longer text is replaced in the transcript."""


async def run_large_conversations(new_client: ClientFactory) -> Transcript:
    """The whole script, of a user that `http_script` has registered; `new_client` is as there."""
    transcript = Transcript()
    async with new_client() as client:
        alice = Browser(client, transcript)
        await alice.login(ALICE, NEW_PASSWORD)
        await _large_messages(alice)
        await _images(alice)
    short = [replace(one, sent=_short(one.sent), answer=_short(one.answer)) for one in transcript.exchanges]
    return Transcript(short)


async def _large_messages(alice: Browser) -> None:
    """More than a document can hold, in messages that each fit."""
    thread = await _new_thread(alice, "a thread for large messages")
    source = random.Random(15)  # noqa: S311 - the same texts in every run
    texts = [source.randbytes(MESSAGE_BYTES // 2).hex() for _ in range(MESSAGES)]
    await _run(alice, thread, "one large message", texts[0])
    await _run(alice, thread, "the other large messages", *texts[1:])
    await alice.send("GET", f"{thread}/state", step="state with the large messages")


async def _images(alice: Browser) -> None:
    """One message that is larger than a document."""
    thread = await _new_thread(alice, "a thread for images")
    source = random.Random(2)  # noqa: S311 - the same images in every run
    content: list[Any] = [{"type": "text", "text": "look at these"}]
    for _ in range(IMAGES):
        url = f"data:image/png;base64,{source.randbytes(IMAGE_BYTES // 2).hex()}"
        content.append({"type": "image_url", "image_url": {"url": url}})
    await _run(alice, thread, "ten images", content)
    await alice.send("GET", f"{thread}/state", step="state with the images")


async def _new_thread(alice: Browser, step: str) -> str:
    """The path of a new thread."""
    return f"/api/threads/{(await alice.ask('POST', '/api/threads', step=step, json={}))['thread_id']}"


async def _run(alice: Browser, thread: str, step: str, *contents: Any) -> None:
    """A run of messages with these contents; its stream has no states in it."""
    body = run_body("", stream_mode=["custom"])
    body["input"]["messages"] = [{"role": "user", "content": content} for content in contents]
    [first, *_] = await alice.ask("POST", f"{thread}/runs/stream", step=step, json=body)
    await alice.send("GET", f"{thread}/runs/{first['data']['run_id']}", step=f"{step}: the run")


def _short(value: Any) -> Any:
    """The value with its long texts replaced by their lengths and hashes."""
    if isinstance(value, str):
        if len(value) <= _MAX_TEXT:
            return value
        return f"<{len(value)} characters, SHA-256 {hashlib.sha256(value.encode()).hexdigest()}>"
    if isinstance(value, dict):
        return {key: _short(item) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_short(item) for item in cast("list[Any]", value)]
    return value
