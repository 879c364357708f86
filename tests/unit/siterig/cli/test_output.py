"""Output on the terminal: text is escaped, colours appear only where they are wanted, JSON is valid."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.printable import printable, printable_lines
from siterig.blockfs.core.progress import DiskProgress, VmProgress
from siterig.cli import follow, output

EVIL = "d\x1b]0;PWN\x07\x1b[31m\x9b31m\r\n\u202egnp\u2028\udcff\t\u200b"
ESCAPED = r"d\x1b]0;PWN\x07\x1b[31m\x9b31m\r\n\u202egnp\u2028\xff\t\u200b"


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    yield
    output.set_json(False)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_every_character_that_a_terminal_obeys_is_escaped() -> None:
    assert printable(EVIL) == ESCAPED
    assert printable("Größe, 日本, 🙂") == "Größe, 日本, 🙂"
    assert printable_lines("a\tb\x1b[1m\nc\rd") == "a\tb\\x1b[1m\nc\\rd"


def test_results_notes_errors_and_progress_are_escaped_and_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    output.line(EVIL, (EVIL, "red"))
    output.notice(EVIL)
    output.progress(EVIL)
    output.error(RigError(Code.of("Bad"), EVIL))
    out, err = capsys.readouterr()
    assert out == f"{ESCAPED}{ESCAPED}\n"
    assert err.splitlines()[:2] == [f"siterig: note: {ESCAPED}", ESCAPED]
    assert err.splitlines()[2:] == [f"siterig: error: {ESCAPED} (Bad)"]
    assert "\x1b" not in err


def test_a_table_in_a_pipe_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("VM",), [(EVIL,)], empty="")
    assert capsys.readouterr().out == f"VM\n{ESCAPED}\n"


def test_json_is_ascii_and_valid_whatever_a_name_holds(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({EVIL: [EVIL, 1, None, {"x": (EVIL,)}]})
    out = capsys.readouterr().out
    assert out.isascii()
    found = json.loads(out)
    (key,) = found
    assert key == EVIL.replace("\udcff", "\\xff")
    assert key.encode() and found[key][0] == key  # no lone surrogate is left


def test_with_json_every_line_on_stderr_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    output.set_json(True)
    output.notice(EVIL)
    output.progress("copy")
    output.foreign(b"one\ntwo\xff\n")
    output.usage_error("No such option", "Usage: siterig")
    output.interrupted()
    output.error(RigError(Code.DiskFull, "no room", recoverable=True))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [next(iter(line)) for line in lines] == ["note", "progress", "output", "error", "error", "error"]
    assert lines[2] == {"output": "one\ntwo\\xff"}
    assert lines[3]["error"] == {"code": "Usage", "message": "No such option", "recoverable": False}
    assert lines[5]["error"] == {"code": "DiskFull", "message": "no room", "recoverable": True}


@pytest.mark.parametrize(
    ("environment", "terminal", "coloured"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_colours_are_for_terminals_unless_the_environment_decides(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], terminal: bool, coloured: bool
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    out = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    output.print_table(("state",), [("Failed",)], empty="")
    assert ("\x1b" in out.getvalue()) == coloured
    assert "Failed" in out.getvalue()


def test_a_terminal_gets_a_bar_with_an_escaped_title(monkeypatch: pytest.MonkeyPatch) -> None:
    err = Terminal()
    monkeypatch.setattr("sys.stderr", err)
    monkeypatch.setenv("NO_COLOR", "1")
    with output.bar("[b]\x1b[31m copy", None) as advance:
        advance(1 << 20, 2 << 20)
    assert "[b]\\x1b[31m copy" in err.getvalue()


def test_a_drawing_on_a_terminal_has_bars_below_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    with output.Drawing(terminal) as drawing:
        drawing.draw(["first"], [output.Bar(EVIL, 1 << 20, 4 << 20, "[red]12 KiB sent")])
        drawing.draw(["last"], [output.Bar("data", 4 << 20, 4 << 20), output.Bar("os", 0, 0)])
    first, last = terminal.getvalue().split("last", 1)
    assert ESCAPED in first
    assert "1.0/4.0 MiB" in first
    assert "[red]12 KiB sent" in first
    assert first.index("first") < first.index("1.0/4.0 MiB")
    assert ESCAPED not in last
    assert "4.0/4.0 MiB" in last
    assert "0/0 bytes" in last


def test_a_drawing_in_a_pipe_has_the_bytes_of_its_bars() -> None:
    pipe = io.StringIO()
    with output.Drawing(pipe) as drawing:
        drawing.draw(["first"], [output.Bar("os", 1, 4)])
    assert pipe.getvalue() == "first\n  os  1 of 4 bytes\n\n"


def test_a_job_has_a_bar_for_each_disk_while_the_agent_works() -> None:
    disk = DiskProgress(disk="os", done_bytes=1, total_bytes=4, sent_bytes=2048)
    working = VmProgress(vm="web01", phase="Resynchronization", disks=[disk])
    assert follow.bars_of(working) == [output.Bar("Resynchronization  os", 1, 4, "2 KiB sent")]
    assert follow.bars_of(working.model_copy(update={"phase": None})) == []
    assert follow.bars_of(None) == []


def test_a_closed_stderr_does_not_end_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    err = io.StringIO()
    err.close()
    monkeypatch.setattr("sys.stderr", err)
    output.notice("text")


def test_details_stay_one_line_in_a_pipe_and_are_wrapped_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "nothing was applied for 3 min (ApplyStalled)"
    assert output.detail("web01", text) == [f"web01: {text}"]
    monkeypatch.setattr("sys.stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "30")
    assert output.detail("web01", text) == ["  web01: nothing was applied", "    for 3 min (ApplyStalled)"]
