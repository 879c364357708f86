"""Error codes: one enumeration, all of it used, no code written as a string, and the page that documents it."""

from __future__ import annotations

import ast
import re

import pytest

from siterig.blockfs.core.errors import Code, ExitStatus, RigError
from siterig.rpc.contract import error_body, error_of
from tests.support.repo import error_page

STATES = {
    ("azure_emu/vault/jobs/engine.py", "Cancelled"),
    ("azure_emu/vault/model/resources.py", "Cancelled"),
    ("azure_emu/vault/workers/resync_worker.py", "Cancelled"),
    ("scenarios/faults/moment_names.py", "Cancelled"),
    ("scenarios/faults/values.py", "InternalError"),
    ("siterig/net/blob_faults.py", "InternalError"),
}
"""A state of jobs, and an error code of the storage service, have the name of a code."""


@pytest.mark.slow
def test_a_code_is_written_as_a_string_nowhere() -> None:
    codes = set(Code)
    literal = [
        f"{path.relative_to(error_page.ROOT)}:{node.lineno}: {node.value}"
        for path in error_page.modules()
        if path != error_page.DEFINITIONS
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in codes
        if (str(path.relative_to(error_page.ROOT)), node.value) not in STATES
    ]
    assert literal == []


def test_every_code_is_used() -> None:
    used = {
        name
        for path in error_page.modules()
        if path != error_page.DEFINITIONS
        for name in re.findall(r"\bCode\.(\w+)", path.read_text())
    }
    assert {code.name for code in Code} - used == set()


def test_the_name_of_a_code_is_its_value_and_its_texts_are_sentences() -> None:
    for code in Code:
        assert code.name == code.value
        for text in (code.text, code.remedy):
            assert re.fullmatch(r"\S[^\n|]*\.", text), code


@pytest.mark.slow
def test_the_page_of_errors_is_generated_from_the_program() -> None:
    assert error_page.PAGE.read_text() == error_page.text(), "run python -m tests.support.repo.error_page"


@pytest.mark.parametrize("code", [Code.VmBusy, Code.of("OfAnotherVersion")])
def test_a_code_crosses_the_wire_unchanged(code: Code) -> None:
    received = error_of(error_body(RigError(code, "why", recoverable=True)))
    assert (received.code, str(received.code), received.code.exit_status) == (code, code.value, ExitStatus.FAILED)


def test_a_known_code_that_was_received_is_the_member() -> None:
    assert Code.of("NotUp") is Code.NotUp
    assert Code.of("NotUp").exit_status == ExitStatus.NOT_UP
