"""The C core makes the same random choices as Python, by the shared vectors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from siterig.blockfs.core.fault_decisions import ALWAYS, UNLIMITED
from siterig.cext._core import ffi, lib
from tests.support import fault_vectors

VECTORS: dict[str, Any] = json.loads(fault_vectors.PATH.read_text())
DISTRIBUTIONS = {"uniform": lib.SR_UNIFORM, "normal": lib.SR_NORMAL, "pareto": lib.SR_PARETO}


def number(row: dict[str, Any], key: str, default: int = 0) -> int:
    value = row.get(key, default)
    return value if isinstance(value, int) else int(value, 16)


def test_choices_are_those_of_the_vectors() -> None:
    for row in VECTORS["streams"]:
        stream = number(row, "stream")
        for j, drawn in enumerate(row["draws_of_2"], 1):
            assert lib.sr_fault_draw(stream, 2, j) == int(drawn, 16)
    for row in VECTORS["choices"]:
        chosen = lib.sr_fault_below(number(row, "stream"), row["n"], row["j"], number(row, "bound"))
        assert chosen == number(row, "chosen"), row


@pytest.mark.parametrize("row", VECTORS["decisions"], ids=lambda row: row["stream"])
def test_operations_that_fire_are_those_of_the_vectors(row: dict[str, Any]) -> None:
    turns = ffi.new(
        "struct sr_fault_turns *",
        {
            "stream": number(row, "stream"),
            "occurrence": number(row, "occurrence"),
            "every": number(row, "every"),
            "threshold": number(row, "threshold", ALWAYS),
            "times": number(row, "times", UNLIMITED),
        },
    )
    fires = [n for n in range(1, VECTORS["operations"] + 1) if lib.sr_fault_fires(turns, n)]
    assert fires[: turns.times] == row["fired"]


def test_delays_are_those_of_the_vectors() -> None:
    for row in VECTORS["delays"]:
        distribution = DISTRIBUTIONS[row["distribution"]]
        found = lib.sr_fault_delay_ns(number(row, "stream"), row["n"], row["delay_ns"], row["jitter_ns"], distribution)
        assert found == row["result_ns"], row
