"""The conformance suite: what the storage contract promises, as tests that any backend can be held against.

A backend's author writes a test class and one fixture:

    class TestMyBackend(StorageConformance):
        @pytest.fixture
        def storage_config(self) -> Mapping[str, Any]:
            return {"backend": "mine", "url": ...}  # an empty database each time

What the backend cannot do at all stands in `lacks`, where it is known to break the contract in
`expected_failures`. Needs pytest and pytest-asyncio (`pip install 'deerflow-mongo[testing]'`), and no plugin
or conftest of ours.
"""

from __future__ import annotations

from . import _requirements as _requirements  # first: what follows needs pytest
from .actors import ActorContract
from .contention import ContentionContract
from .contract import KINDS, Contract, is_from_nothing, needs
from .event_access import EventAccessContract
from .event_pages import EventPageContract
from .feedback import FeedbackStoreContract
from .identifiers import IdentifierContract
from .observer import ObserverContract
from .payloads import PayloadContract
from .rows import RowContract
from .run_events import RunEventContract
from .run_updates import RunUpdateContract
from .runs import RunStoreContract
from .sizes import SizeContract
from .storage import StorageContract
from .thread_metadata import ThreadMetadataContract
from .thread_search import ThreadSearchContract
from .threads import ThreadStoreContract
from .token_usage import TokenUsageContract
from .votes import VoteContract

__all__ = [
    "KINDS",
    "ActorContract",
    "ContentionContract",
    "Contract",
    "EventAccessContract",
    "EventPageContract",
    "FeedbackStoreContract",
    "IdentifierContract",
    "ObserverContract",
    "PayloadContract",
    "RowContract",
    "RunEventContract",
    "RunStoreContract",
    "RunUpdateContract",
    "SizeContract",
    "StorageConformance",
    "StorageContract",
    "ThreadMetadataContract",
    "ThreadSearchContract",
    "ThreadStoreContract",
    "TokenUsageContract",
    "VoteContract",
    "is_from_nothing",
    "needs",
]


class StorageConformance(
    StorageContract,
    ActorContract,
    RowContract,
    RunStoreContract,
    RunUpdateContract,
    TokenUsageContract,
    FeedbackStoreContract,
    VoteContract,
    ThreadStoreContract,
    ThreadMetadataContract,
    ThreadSearchContract,
    RunEventContract,
    EventPageContract,
    EventAccessContract,
    ObserverContract,
    PayloadContract,
    SizeContract,
    IdentifierContract,
    ContentionContract,
):
    """The whole contract."""
