"""The whole driver contract.

What a store makes of an answer is checked by the conformance suite, which runs on PyMongo. That each driver
that talks to a server gives the same answers, errors and endings is checked here.
"""

from __future__ import annotations

from .answers import AnswerContract
from .cancellation import CancellationContract
from .change_streams import ChangeStreamContract
from .clients import ClientContract
from .closing import ClosingContract
from .error_mapping import ErrorMappingContract
from .event_loop import EventLoopContract
from .group_limits import GroupLimitContract
from .grouped_lists import GroupedListContract, GroupedUpsertContract
from .grouped_reads import GroupedReadContract
from .grouped_writes import GroupedInsertContract, GroupedUpdateContract
from .large_batches import LargeBatchContract
from .name_lookup import NameLookupContract
from .own_writes import OwnWritesContract
from .time_limits import TimeLimitContract


class DriverContract(
    AnswerContract,
    ErrorMappingContract,
    LargeBatchContract,
    ChangeStreamContract,
    ClosingContract,
    CancellationContract,
    ClientContract,
    NameLookupContract,
    OwnWritesContract,
    EventLoopContract,
    TimeLimitContract,
    GroupedReadContract,
    GroupedInsertContract,
    GroupedUpdateContract,
    GroupedListContract,
    GroupedUpsertContract,
    GroupLimitContract,
):
    """Bound to a driver by a subclass that names it and its client's class."""
