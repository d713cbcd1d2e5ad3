"""The conformance suite: the promises of the storage contract, as tests for any backend.

A backend's author writes one test class with one fixture:

    class TestMyBackend(StorageConformance):
        @pytest.fixture
        def storage_config(self) -> Mapping[str, Any]:
            return {"backend": "mine", "url": ...}  # an empty database each time

`lacks` lists what the backend cannot do at all, `expected_failures` the tests it is known to fail. The
suite needs pytest and pytest-asyncio (`pip install 'deerflow-mongo[testing]'`), and no plugin or conftest.
The README beside this module has a complete example.
"""

from __future__ import annotations

from . import _requirements as _requirements  # first: what follows needs pytest
from .accounts import AccountContract
from .actors import ActorContract
from .admission import AdmissionContract
from .bulk_rows import BulkRowsContract
from .cases import case
from .contention import ContentionContract
from .contract import KINDS, Contract, needs, needs_new_database
from .copies import CopyContract
from .erasure import ErasureContract
from .errors import ErrorContract
from .event_access import EventAccessContract
from .event_ids import EventIdContract
from .event_pages import EventPageContract
from .feedback import FeedbackStoreContract
from .following import FollowingContract
from .history import HistoryContract
from .identifiers import IdentifierContract
from .leases import LeaseContract
from .many_rows import ManyRowsContract
from .model_counts import ModelCountContract
from .new_after_deletion import NewAfterDeletionContract
from .observer import ObserverContract
from .payloads import PayloadContract
from .rows import RowContract
from .run_events import RunEventContract
from .run_ownership import RunOwnershipContract
from .run_updates import RunUpdateContract
from .runs import RunStoreContract
from .sizes import SizeContract
from .status_conditions import StatusConditionContract
from .storage import StorageContract
from .thread_metadata import ThreadMetadataContract
from .thread_search import ThreadSearchContract
from .threads import ThreadStoreContract
from .token_usage import TokenUsageContract
from .votes import VoteContract

__all__ = [
    "KINDS",
    "AccountContract",
    "ActorContract",
    "AdmissionContract",
    "BulkRowsContract",
    "ContentionContract",
    "Contract",
    "CopyContract",
    "ErasureContract",
    "ErrorContract",
    "EventAccessContract",
    "EventIdContract",
    "EventPageContract",
    "FeedbackStoreContract",
    "FollowingContract",
    "HistoryContract",
    "IdentifierContract",
    "LeaseContract",
    "ManyRowsContract",
    "ModelCountContract",
    "NewAfterDeletionContract",
    "ObserverContract",
    "PayloadContract",
    "RowContract",
    "RunEventContract",
    "RunOwnershipContract",
    "RunStoreContract",
    "RunUpdateContract",
    "SizeContract",
    "StatusConditionContract",
    "StorageConformance",
    "StorageContract",
    "ThreadMetadataContract",
    "ThreadSearchContract",
    "ThreadStoreContract",
    "TokenUsageContract",
    "VoteContract",
    "case",
    "needs",
    "needs_new_database",
]


class StorageConformance(
    StorageContract,
    ActorContract,
    RowContract,
    RunStoreContract,
    RunUpdateContract,
    TokenUsageContract,
    ModelCountContract,
    RunOwnershipContract,
    AdmissionContract,
    LeaseContract,
    StatusConditionContract,
    HistoryContract,
    FeedbackStoreContract,
    VoteContract,
    ThreadStoreContract,
    ThreadMetadataContract,
    ThreadSearchContract,
    RunEventContract,
    EventPageContract,
    EventAccessContract,
    EventIdContract,
    NewAfterDeletionContract,
    CopyContract,
    ManyRowsContract,
    ObserverContract,
    PayloadContract,
    SizeContract,
    IdentifierContract,
    ErrorContract,
    AccountContract,
    ErasureContract,
    BulkRowsContract,
    FollowingContract,
    ContentionContract,
):
    """The whole contract: the core, and the capabilities that a storage has."""
