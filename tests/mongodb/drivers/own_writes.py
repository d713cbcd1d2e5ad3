"""A process reads its own acknowledged writes under every write concern that is accepted."""

from __future__ import annotations

import pytest
from pymongo import ReadPreference
from pymongo.read_concern import ReadConcern

from deerflow_mongo import MongoStorage, StorageConfigError

from .fixtures import BATCH, DriverFixtures, Opener, close_client, event

_ROUNDS = 3

WRITE_CONCERNS = (
    "w=1",
    "w=majority&journal=false",
    "journal=true",
    "w=1&journal=false",
    "w=1&wTimeoutMS=1000",
)


async def _write_and_read(storage: MongoStorage) -> None:
    """Each list and count, right after a write."""
    events, runs = storage.run_events, storage.runs
    for number in range(_ROUNDS):
        thread_id = f"own-{number}"
        row = await events.put(**event(thread_id=thread_id))
        assert await events.list_messages(thread_id) == [row]
        await events.put(**event(thread_id=thread_id))
        assert await events.count_messages(thread_id) == 2
        await events.put(**event(thread_id=thread_id))
        assert len(await events.list_events(thread_id, "r")) == 3
        await events.put(**event(thread_id=thread_id))
        assert len(await events.list_thread_events(thread_id)) == 4
        await runs.create(thread_id, "own", user_id="u")
        assert len(await runs.list_by_thread("own", user_id="u")) == number + 1
        await events.delete_by_thread(thread_id)
        assert await events.count_messages(thread_id) == 0


class OwnWritesContract(DriverFixtures):
    @pytest.mark.parametrize("options", [*WRITE_CONCERNS, "w=1&readConcernLevel=majority"])
    async def test_lists_and_counts_show_what_was_just_written(
        self, options: str, new_storage: Opener, mongodb_url: str
    ) -> None:
        async with new_storage(url=f"{mongodb_url}&{options}") as storage:
            await _write_and_read(storage)

    async def test_read_settings_of_a_callers_client_change_nothing(
        self, new_storage: Opener, mongodb_url: str
    ) -> None:
        client = self.client_class(
            f"{mongodb_url}&readConcernLevel=linearizable", w=1, readPreference="secondaryPreferred"
        )
        async with new_storage(client=client) as storage:
            await _write_and_read(storage)
            await storage.run_events.put_batch([event(thread_id="large")] * BATCH)
            assert await storage.run_events.count_messages("large") == BATCH
            handle = await storage.driver.collection("runs").handle()
            assert handle.read_preference == ReadPreference.PRIMARY
            assert handle.read_concern == ReadConcern("local")
        await close_client(client)

    @pytest.mark.parametrize(
        ("options", "concern"),
        [
            ("", {"w": "majority"}),
            ("&journal=true", {"w": "majority", "j": True}),
            ("&wTimeoutMS=9000", {"w": "majority", "wtimeout": 9000}),
            ("&w=2", {"w": 2}),
        ],
    )
    async def test_write_concern_is_a_majority_where_only_other_parts_are_given(
        self, options: str, concern: object, new_storage: Opener, mongodb_url: str
    ) -> None:
        storage = new_storage(url=mongodb_url + options)
        assert (await storage.driver.opened()).write_concern.document == concern
        await storage.aclose()

    @pytest.mark.parametrize("w", ["3", "nosuchmode"])
    async def test_write_concern_that_the_server_cannot_satisfy_is_a_configuration_error(
        self, w: str, storage: MongoStorage, new_storage: Opener, mongodb_url: str
    ) -> None:
        async with storage:
            other = new_storage(url=f"{mongodb_url}&w={w}")
            writes = (
                other.runs.create("r", "t", user_id=None),
                other.run_events.put(**event()),
                other.run_events.put_batch([event()] * 3),
                other.feedback.upsert(run_id="r", thread_id="t", rating=1, user_id="u"),
                other.runs.delete("r", user_id=None),
            )
            for write in writes:
                with pytest.raises(StorageConfigError, match="cannot satisfy `w` of the URL or client: `"):
                    await write
            await other.aclose()

    async def test_followers_see_changes_whatever_read_concern_the_uri_has(
        self, new_storage: Opener, mongodb_url: str
    ) -> None:
        async with new_storage(url=f"{mongodb_url}&readConcernLevel=local") as storage:
            row = await storage.run_events.put(**event())
            following = storage.run_events.follow("t")
            assert await anext(following) == row
            await following.aclose()
