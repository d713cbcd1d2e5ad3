"""Errors: one hierarchy, and each error survives pickle, copy and a process pool."""

from __future__ import annotations

import concurrent.futures
import copy
import multiprocessing
import pickle
from collections.abc import Callable

import pytest

import deerflow_mongo
from deerflow_mongo import StorageError
from deerflow_mongo.contract import errors

EXAMPLES: dict[str, StorageError] = {
    "StorageError": errors.StorageError("text"),
    "StorageUnavailableError": errors.StorageUnavailableError("text"),
    "StorageAccessError": errors.StorageAccessError("text"),
    "CorruptDocumentError": errors.CorruptDocumentError("runs", "run-1", "tokens.input", "is missing"),
    "StorageClosedError": errors.StorageClosedError(),
    "StorageConfigError": errors.StorageConfigError("text"),
    "BackendNotFoundError": errors.BackendNotFoundError("text"),
    "MissingDependencyError": errors.MissingDependencyError("driver: motor", "motor", "motor"),
    "InvalidArgumentError": errors.InvalidArgumentError("text"),
    "ArgumentTypeError": errors.ArgumentTypeError("text"),
    "ArgumentValueError": errors.ArgumentValueError("text"),
    "InvalidPayloadError": errors.InvalidPayloadError("metadata.a[3]", "why"),
    "PayloadTooLargeError": errors.PayloadTooLargeError("metadata", 5, 6),
    "ActorMissingError": errors.ActorMissingError("RunStore.get"),
    "ThreadAccessError": errors.ThreadAccessError("thread-1", "use"),
    "RunExistsError": errors.RunExistsError("run-1"),
    "ActiveRunError": errors.ActiveRunError("thread-1", is_protected=True),
    "IdempotencyKeyError": errors.IdempotencyKeyError({"run_id": "run-1", "metadata": {"a": [1]}}),
    "ThreadExistsError": errors.ThreadExistsError("thread-1"),
    "UserExistsError": errors.UserExistsError("email"),
}
BUILT_IN: dict[str, type[Exception]] = {
    "ArgumentTypeError": TypeError,
    "ArgumentValueError": ValueError,
    "InvalidPayloadError": ValueError,
    "PayloadTooLargeError": ValueError,
    "ActorMissingError": RuntimeError,
    "ThreadAccessError": PermissionError,
}
COPIES: dict[str, Callable[[StorageError], StorageError]] = {
    "pickle": lambda error: pickle.loads(pickle.dumps(error)),  # noqa: S301 - our own error
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


def raise_example(name: str) -> None:
    raise EXAMPLES[name]


def test_every_error_class_of_the_module_has_an_example_and_is_exported() -> None:
    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and "Error" in name}
    exported = {name for name in deerflow_mongo.__all__ if name.endswith("Error")}
    assert classes == set(EXAMPLES) == exported


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_error_is_a_storage_error_and_some_are_built_in_ones_too(name: str) -> None:
    assert isinstance(EXAMPLES[name], StorageError)
    assert isinstance(EXAMPLES[name], BUILT_IN.get(name, StorageError))


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", EXAMPLES)
def test_copy_has_the_same_type_text_and_attributes(name: str, how: str) -> None:
    error = copy.copy(EXAMPLES[name])
    error.add_note("a note")
    copied = COPIES[how](error)
    assert type(copied) is type(error)
    assert str(copied) == str(error) != ""
    assert (copied.args, vars(copied)) == (error.args, vars(error))


def test_errors_cross_a_process_pool() -> None:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        raised = {name: pool.submit(raise_example, name).exception(timeout=300) for name in EXAMPLES}
    for name, error in raised.items():
        assert type(error) is type(EXAMPLES[name])
        assert str(error) == str(EXAMPLES[name])
