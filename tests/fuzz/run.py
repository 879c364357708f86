"""Runs a property for a share of a budget of seconds, and prints the seed that replays it.

``SITERIG_FUZZ_S``: the budget of all fuzzers together (16).  ``SITERIG_SEED``: the seed of the first round.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from hypothesis import HealthCheck, Phase, given, note, seed, settings
from hypothesis import strategies as st

from tests.fuzz.damage import Choices
from tests.support.memory import folder_in_memory

BUDGET_S = float(os.environ.get("SITERIG_FUZZ_S", "16"))
FIRST_SEED = int(os.environ.get("SITERIG_SEED", random.SystemRandom().randrange(1 << 32)))
ROUND_EXAMPLES = 100
CHOICE_BYTES = 160

T = TypeVar("T")


def fuzz(make: Callable[[Choices], T], target: Callable[[T, Path], str], *, share: float) -> Counter[str]:
    """Run rounds of examples, each with the next seed, until ``share`` of the budget is used; at least one round.

    Returns:
        The number of examples for each outcome.
    """
    outcomes: Counter[str] = Counter()
    with folder_in_memory("siterig-fuzz") as memory:
        last = _run_rounds(make, target, memory, outcomes, end=time.monotonic() + BUDGET_S * share)
    print(f"{sum(outcomes.values())} executions, seeds {FIRST_SEED} to {last}: {dict(sorted(outcomes.items()))}")
    return outcomes


def _run_rounds(
    make: Callable[[Choices], T], target: Callable[[T, Path], str], memory: Path, outcomes: Counter[str], *, end: float
) -> int:
    """Run rounds until ``end`` on the monotonic clock, and return the seed of the last one."""
    number = FIRST_SEED
    while True:
        print(f"seed of this round: SITERIG_SEED={number}")  # shown if the round fails

        @seed(number)
        @settings(
            max_examples=ROUND_EXAMPLES,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(st.binary(min_size=CHOICE_BYTES, max_size=CHOICE_BYTES))
        def one_round(choices: bytes) -> None:
            example = make(Choices(choices))
            note(repr(example))
            with tempfile.TemporaryDirectory(dir=memory) as name:
                outcomes[target(example, Path(name))] += 1

        one_round()
        if time.monotonic() > end:
            return number
        number += 1
