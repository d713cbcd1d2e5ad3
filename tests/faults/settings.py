"""How much the property tests try: bounded and repeatable in CI, more by `DEERFLOW_MONGO_FAULTS=long`.

In the long form every run tries other examples; a failure prints the `reproduce_failure` of its own.
"""

from __future__ import annotations

import gc
import os
import tempfile

import hypothesis
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from ..long_form import LONG_FORM

# Hypothesis stores tables there, and would make a folder in the repository for them.
set_hypothesis_home_dir(os.path.join(tempfile.gettempdir(), "deerflow-mongo-hypothesis"))  # noqa: PTH118

_ON_A_SLOW_MACHINE = (
    hypothesis.HealthCheck.too_slow,
    hypothesis.HealthCheck.data_too_large,
    hypothesis.HealthCheck.large_base_example,
)


def bounded(examples: int, steps: int, *, long_form_factor: int = 40) -> hypothesis.settings:
    """The settings of one state machine; a slow machine changes nothing about what is tried."""
    return hypothesis.settings(
        max_examples=examples * (long_form_factor if LONG_FORM else 1),
        stateful_step_count=steps,
        derandomize=not LONG_FORM,
        database=None,
        deadline=None,
        print_blob=True,
        phases=[phase for phase in hypothesis.Phase if LONG_FORM or phase is not hypothesis.Phase.shrink],
        suppress_health_check=_ON_A_SLOW_MACHINE,
    )


def run_machine(machine: type[RuleBasedStateMachine], settings: hypothesis.settings) -> None:
    """Run one state machine.

    Hypothesis parses its source. Before Python 3.11.8 and 3.12.1 that fails (python/cpython#106905) where a
    garbage collection in the middle logs a traceback of an earlier test, which is parsed as well.
    """
    gc.collect()
    run_state_machine_as_test(machine, settings=settings)
