"""The faults of a mount on its output: a reader that is slow or gone does not hold up or end the mount."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from siterig.cli.shown_faults import ShownFaults
from siterig.scenarios.faults.records import Injection

PIPE_BYTES = 65_536


def injection(number: int) -> Injection:
    return Injection(sequence=number, rule="r", layer="disk", operation="flush d", n=1, time="t", done="failed with EIO")


@contextmanager
def piped(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Let stdout be a pipe; yield its end for reading."""
    reader, writer = os.pipe()
    stdout = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", stdout)
    yield reader
    monkeypatch.undo()
    with contextlib.suppress(BrokenPipeError):
        stdout.close()


def test_a_slow_reader_gets_every_fault_and_keeps_nothing_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    with piped(monkeypatch) as reader:
        shown, count = ShownFaults(as_json=True), 3 * PIPE_BYTES // 100
        for number in range(1, count + 1):
            shown.injected(injection(number))  # more than the pipe holds
        with os.fdopen(reader) as lines:
            found = [json.loads(next(lines))["injected"]["sequence"] for _ in range(count)]
        assert found == list(range(1, count + 1))
        shown.close()


def test_a_reader_that_is_gone_does_not_end_the_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    with piped(monkeypatch) as reader:
        os.close(reader)
        shown = ShownFaults(as_json=True)
        for number in range(1, 4):
            shown.injected(injection(number))
        shown.close()
