"""What an upgrade of a database would do, and about how long each step may take. Changes nothing.

The steps are those of `migrations.apply` in its order. A time is an estimate: the number of documents, and
their average size, by the rates below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from ..contract.errors import StorageConfigError
from . import queries
from .database_state import DatabaseState, concurrently, read_database
from .drivers.driver import Driver, long_running
from .inspection import missing_indexes, wanted_indexes
from .migrations import check_applicable, check_readable
from .schema import COLLECTIONS, CollectionSchema
from .upgrades import Action, Step, steps_of

CONVERTED_PER_S = 1_000
"""Documents that are converted in a second, with the indexes of their collection.

A busy machine with two processors converted 700 runs, or 5,500 events.
"""
CHECKED_PER_S = 100_000
"""Documents whose version is read in a second: an assumption."""
BUILT_KEYS_PER_S = 80_000
"""Keys that the build of one index, or of several at once, sorts in a second; that machine did 58,000."""
SCANNED_BYTES_PER_S = 50 * 1024 * 1024
"""What such a build reads in a second: an assumption."""

SAMPLED_DOCUMENTS = 1_000
COUNTED_DOCUMENTS = 10_000
"""Up to so many documents of a collection are counted; of a larger one a sample is."""

Basis: TypeAlias = Literal["counted", "estimated"]


@dataclass(frozen=True, slots=True)
class PlannedStep:
    action: Action
    collection: str
    """With its prefix."""
    indexes: tuple[str, ...] = ()
    documents: int = 0
    """That are converted, or from which the indexes are built."""
    basis: Basis | None = None
    """Whether the documents to convert were counted, or estimated from a sample."""
    seconds: float = 0.0
    """About how long it takes; 0 for what takes no time to speak of."""


def _steps() -> list[PlannedStep]:
    return []


@dataclass(slots=True)
class UpgradePlan:
    """What `upgrade()` would do; no step where everything is there."""

    steps: list[PlannedStep] = field(default_factory=_steps)
    refusal: str | None = None
    """Why it would refuse the database, and change nothing."""

    @property
    def seconds(self) -> float:
        """About how long all of it takes; indexes of several collections are built at once."""
        built = [step.seconds for step in self.steps if step.action == "index"]
        return max(built, default=0.0) + sum(step.seconds for step in self.steps if step.action != "index")


class _Size(NamedTuple):
    documents: int
    average_bytes: float
    old_documents: int
    basis: Basis


async def plan_upgrade(
    driver: Driver, prefix: str, database: str, retention: Mapping[str, int | None]
) -> UpgradePlan:
    """The steps that `migrations.apply` would take, with the retention that is asked for."""
    state = await read_database(driver, prefix)
    try:
        check_readable(state.version, database)
        if state.is_of_newer_release:
            return UpgradePlan()
        await check_applicable(driver, state, retention)
    except StorageConfigError as error:
        return UpgradePlan(refusal=str(error))
    steps = steps_of(state)
    touched = [schema for schema in COLLECTIONS if _needs_size(state, schema, retention, steps)]
    found = await concurrently(_size_of(driver, prefix + schema.name, steps) for schema in touched)
    sizes = {schema.name: size for schema, size in zip(touched, found, strict=True)}
    planned = [
        step for schema in COLLECTIONS for step in _of_collection(state, schema, retention, sizes, steps)
    ]
    return UpgradePlan([*planned, *_of_conversion(state, sizes, steps)])


def _needs_size(
    state: DatabaseState,
    schema: CollectionSchema,
    retention: Mapping[str, int | None],
    steps: Sequence[Step],
) -> bool:
    name = state.prefix + schema.name
    if name not in state.collections:
        return False
    is_converted = any(schema.name in step.conversions for step in steps)
    return is_converted or bool(_missing(state, schema, retention))


def _missing(
    state: DatabaseState, schema: CollectionSchema, retention: Mapping[str, int | None]
) -> list[str]:
    existing = state.indexes.get(state.prefix + schema.name, [])
    return [index.name for index in missing_indexes(wanted_indexes(schema, existing, retention), existing)]


async def _size_of(driver: Driver, name: str, steps: Sequence[Step]) -> _Size:
    """By metadata and a sample; the documents of old versions by a count where the collection is small."""
    old = [step.from_version for step in steps]
    documents = await driver.count_documents(name)
    with long_running():
        [found] = await driver.collection(name).aggregate(queries.sampled(SAMPLED_DOCUMENTS, old)) or [{}]
    sampled, of_old = found.get("sampled", 0), found.get("old", 0)
    basis: Basis = "counted" if documents <= COUNTED_DOCUMENTS else "estimated"
    if not old or not sampled:
        of_old = 0
    elif basis == "counted":
        of_old = await driver.count_documents(name, queries.of_versions(old))
    else:
        of_old = round(documents * of_old / sampled)
    return _Size(documents, found.get("bytes", 0.0), of_old, basis)


def _of_collection(
    state: DatabaseState,
    schema: CollectionSchema,
    retention: Mapping[str, int | None],
    sizes: Mapping[str, _Size],
    steps: Sequence[Step],
) -> list[PlannedStep]:
    name, planned = state.prefix + schema.name, list[PlannedStep]()
    if name not in state.collections:
        planned.append(PlannedStep("create", name))
    elif state.options(name).get("validator") != schema.stored_validator or steps:
        planned.append(PlannedStep("validate", name))
    missing = _missing(state, schema, retention)
    if missing:
        size = sizes.get(schema.name, _Size(0, 0.0, 0, "counted"))
        scanned = size.documents * size.average_bytes / SCANNED_BYTES_PER_S
        seconds = scanned + len(missing) * size.documents / BUILT_KEYS_PER_S
        planned.append(PlannedStep("index", name, tuple(missing), size.documents, None, seconds))
    return planned


def _of_conversion(
    state: DatabaseState, sizes: Mapping[str, _Size], steps: Sequence[Step]
) -> list[PlannedStep]:
    planned: list[PlannedStep] = []
    for step in steps:
        for name in step.conversions:
            size = sizes.get(name)
            if size is not None:
                seconds = size.old_documents / CONVERTED_PER_S + size.documents / CHECKED_PER_S
                planned.append(
                    PlannedStep("convert", state.prefix + name, (), size.old_documents, size.basis, seconds)
                )
        for name, indexes in step.obsolete_indexes.items():
            existing = [index["name"] for index in state.indexes.get(state.prefix + name, ())]
            dropped = tuple(index for index in indexes if index in existing)
            if dropped:
                planned.append(PlannedStep("drop_index", state.prefix + name, dropped))
        planned += [
            PlannedStep("convert_late", state.prefix + name, seconds=sizes[name].documents / CHECKED_PER_S)
            for name in step.conversions
            if name in sizes
        ]
    return planned
