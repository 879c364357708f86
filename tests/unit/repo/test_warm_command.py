"""Commands that a process forks behave like commands that are started in the usual way."""

from __future__ import annotations

import pytest

import siterig.__main__
from tests.support import forked_program, warm_command
from tests.support.warm_command import WarmProgram, run_warm, start_siterig


@pytest.mark.slow
@pytest.mark.parametrize("words", [("--version",), ("no-such-command",), ("vm", "list", "--dir", "/nonexistent")])
def test_status_and_output_are_those_of_a_new_process(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    forked = run_warm(*words)
    monkeypatch.setattr(warm_command, "_NAMESPACE", 0)
    usual = run_warm(*words)
    assert (forked.returncode, forked.stdout, forked.stderr) == (usual.returncode, usual.stdout, usual.stderr)


@pytest.mark.slow
def test_in_another_mount_namespace_a_command_is_started_in_the_usual_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_command, "_NAMESPACE", 0)
    with start_siterig(["--version"]) as command:
        assert not isinstance(command, WarmProgram)
        assert command.communicate()[0].startswith("siterig ")


def test_an_exception_of_the_command_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def crash() -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(siterig.__main__, "main", crash)
    assert forked_program.status_of("siterig.__main__") == 1
    assert capsys.readouterr().err.endswith("ValueError: a bug\n")
