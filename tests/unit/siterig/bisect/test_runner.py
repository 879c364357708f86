"""A whole search over states that are plain files: what is reported, what is refused, and that nothing is left mounted."""

from __future__ import annotations

import random
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio

from siterig.azure_emu.contracts.recovery_side import Change, ChangeKind
from siterig.azure_emu.vault.model.resources import RecoveryPoint
from siterig.bisect import hexdiff
from siterig.bisect.check_command import CheckCommand
from siterig.bisect.runner import Bisection, BisectRequest, Report, Trial
from siterig.bisect.search import ChangeGroup
from siterig.bisect.states import BisectState, resources_in_use
from siterig.blockfs.core.clock import rfc3339
from siterig.blockfs.core.errors import Code, RigError
from siterig.cli.trials import bisect as command

SIZE = 64 << 10
GOOD, BAD = 100, 900
EVIL = b"EVIL"


@dataclass(frozen=True)
class Row:
    position: int
    disk: str
    kind: ChangeKind
    offset: int
    length: int
    data: bytes

    @property
    def change(self) -> Change:
        return Change(
            position=self.position, time_ns=self.position * 10**9, kind=self.kind, offset=self.offset, length=self.length
        )


class FileStates:
    """States of two disks with a random history in which one write puts ``EVIL`` somewhere."""

    def __init__(self, folder: Path, seed: int) -> None:
        dice = random.Random(seed)
        self.folder = folder
        self.rows = []
        for position in sorted(dice.sample(range(GOOD + 1, BAD - 5), 120)):
            data = bytes(dice.randrange(128, 256) for _ in range(dice.randrange(1, 3000)))
            disk = dice.choice(["os", "data"])
            self.rows.append(Row(position, disk, "WRITE", dice.randrange(SIZE - 3000), len(data), data))
        self.evil_at = dice.randrange(120)
        row = self.rows[self.evil_at]
        # No later write reaches this place, so the bytes stay.
        self.rows[self.evil_at] = replace(row, offset=SIZE - 16, length=4, data=EVIL)
        self.open_names: set[str] = set()
        self.copy: dict[str, Path] | None = None
        self.invalid: set[int] = set()
        self.opened = self.most_open = 0
        self.close_fails: set[str] = set()

    @property
    def evil(self) -> Row:
        return self.rows[self.evil_at]

    async def open_point(self, text: str) -> BisectState:
        return await self.open({"good": GOOD, "bad": BAD}[text], None)

    async def open(self, position: int, time_ns: int | None) -> BisectState:
        if position in self.invalid:
            raise RigError(Code.InvalidPosition, f"position {position} is none")
        self.opened += 1
        name = f"s{self.opened}"
        images = {}
        for disk in ("os", "data"):
            content = bytearray(SIZE)
            for row in self.rows:
                if row.disk == disk and row.position <= position:
                    content[row.offset : row.offset + row.length] = row.data
            images[disk] = self.folder / f"{name}-{disk}.img"
            images[disk].write_bytes(content)
            images[disk].chmod(0o400)
        self.open_names.add(name)
        self.most_open = max(self.most_open, len(self.open_names))
        return BisectState(name, position, time_ns, images)

    async def close(self, state: BisectState) -> None:
        if state.name in self.close_fails:
            raise RigError(Code.LeftBehind, "CMD left /dev/loop9")
        self.open_names.remove(state.name)
        for image in state.images.values():
            image.unlink()

    async def writable(self, state: BisectState) -> dict[str, Path]:
        assert self.copy is None
        self.copy = {disk: image.with_suffix(".copy") for disk, image in state.images.items()}
        for disk, image in self.copy.items():
            image.write_bytes(state.images[disk].read_bytes())
        return self.copy

    async def discard(self) -> None:
        for image in (self.copy or {}).values():
            image.unlink()
        self.copy = None

    async def steps(self, after: int, upto: int) -> list[ChangeGroup]:
        return [ChangeGroup(row.position, row.position * 10**9, 1) for row in self.rows if after < row.position <= upto]

    async def changes(self, after: int, upto: int) -> list[tuple[str, Change]]:
        return [(row.disk, row.change) for row in self.rows if after < row.position <= upto]

    async def points_around(self, position: int) -> tuple[RecoveryPoint | None, RecoveryPoint | None]:
        return point(position - 1), None


def point(position: int) -> RecoveryPoint:
    return RecoveryPoint(
        id=f"id-{position}",
        name="",
        type="CrashConsistent",
        time=rfc3339(position),
        position=position,
        time_ns=position,
    )


def wanted(
    *words: str,
    good: str = "good",
    bad: str = "bad",
    timeout_s: float | None = None,
    writable: bool = False,
    keep: bool = False,
) -> BisectRequest:
    return BisectRequest(good, bad, list(words), timeout_s, writable, keep, verbose=False)


NO_EVIL = ("sh", "-c", "! grep -q EVIL {os} {data}")


@pytest.fixture
def states(tmp_path: Path) -> FileStates:
    return FileStates(tmp_path, seed=7)


async def searched(states: FileStates, asked: BisectRequest) -> tuple[Report, list[Trial], list[str]]:
    trials: list[Trial] = []
    notes: list[str] = []
    return await Bisection(states, asked, trials.append, notes.append).run(), trials, notes


def failed_with(error: ExceptionGroup | RigError) -> str:
    return str(error)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
async def test_the_write_is_named_with_its_changes(tmp_path: Path, seed: int) -> None:
    states = FileStates(tmp_path, seed)
    report, trials, notes = await searched(states, wanted(*NO_EVIL))
    evil, before = states.evil, [GOOD, *(row.position for row in states.rows)][states.evil_at]
    assert (report.good.position, report.bad.position, report.undecided) == (before, evil.position, ())
    assert report.bad.time_ns == evil.position * 10**9
    (seen,) = report.changes
    assert (seen.disk, seen.change) == (evil.disk, evil.change)
    assert seen.difference is not None
    assert seen.difference.lines() == [
        "- " + "0000fff0  00 00 00 00".ljust(60) + "|....|",
        "+ " + "0000fff0  45 56 49 4c".ljust(60) + "|EVIL|",
    ]
    assert (report.point_before, report.point_after) == (point(evil.position - 1), None)
    assert len(trials) <= 2 + 7
    assert [trial.verdict for trial in trials[:2]] == ["passed", "failed"]
    assert [trial.left for trial in trials][:3] == [8, 7, 6]
    assert notes == []
    assert (states.open_names, states.most_open) == (set(), 3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
async def test_the_states_of_the_edge_stay_if_asked_to(states: FileStates) -> None:
    report, _, _ = await searched(states, wanted(*NO_EVIL, keep=True))
    assert states.open_names == {report.good.name, report.bad.name}
    assert EVIL in report.bad.images[states.evil.disk].read_bytes()


@pytest.mark.slow
async def test_a_check_that_writes_gets_copies_that_are_thrown_away(states: FileStates, tmp_path: Path) -> None:
    script = "! grep -q EVIL {os} {data} && echo changed | tee {os} {data} > /dev/null"
    report, _, _ = await searched(states, wanted("sh", "-c", script, writable=True))
    assert report.bad.position == states.evil.position
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
async def test_positions_that_are_no_state_are_skipped_and_reported(states: FileStates) -> None:
    around = range(states.evil_at - 2, states.evil_at)
    states.invalid = {states.rows[number].position for number in around}
    report, trials, notes = await searched(states, wanted(*NO_EVIL))
    assert report.good.position == states.rows[states.evil_at - 3].position
    assert [step.position for step in report.undecided] == sorted(states.invalid)
    assert [seen.change for seen in report.changes] == [
        row.change for row in states.rows[states.evil_at - 2 : states.evil_at + 1]
    ]
    assert {trial.position for trial in trials if trial.verdict == "skipped"} == states.invalid
    assert all("is skipped: position" in note for note in notes)


@pytest.mark.slow
async def test_status_125_skips(states: FileStates, tmp_path: Path) -> None:
    states.rows = states.rows[states.evil_at - 3 : states.evil_at + 3]
    states.evil_at = 3
    row = states.rows[2]
    states.rows[2] = replace(row, offset=SIZE - 32, length=4, data=b"SKIP")
    states.rows[3] = replace(states.rows[3], disk=row.disk, offset=SIZE - 32, length=4, data=b"EVIL")
    script = f"grep -q SKIP {{{row.disk}}} && exit 125; ! grep -q EVIL {{{row.disk}}}"
    report, trials, _ = await searched(states, wanted("sh", "-c", script))
    assert [step.position for step in report.undecided] == [row.position]
    assert "skipped" in [trial.verdict for trial in trials]
    assert str(next(t.outcome for t in trials if t.verdict == "skipped")) == "skipped (exit status 125)"


async def refused(states: FileStates, asked: BisectRequest) -> RigError:
    with pytest.raises(RigError) as failed:
        await searched(states, asked)
    assert (states.open_names, list(states.folder.iterdir())) == (set(), [])
    return failed.value


@pytest.mark.slow
async def test_a_check_with_the_same_result_for_both_points_is_refused(states: FileStates) -> None:
    error = await refused(states, wanted("sh", "-c", "echo a; echo no good; exit 3; : {os}"))
    assert (error.code, error.message) == (
        "CheckFails",
        "CMD does not pass at the good point good (position 100): failed (exit status 3); it said last: no good",
    )
    error = await refused(states, wanted("true", "{os}"))
    assert (error.code, error.message) == (
        "CheckPasses",
        "CMD does not fail at the bad point bad (position 900): passed; no first bad write exists between them",
    )
    error = await refused(states, wanted("true", "{os}", good="bad", bad="good"))
    assert error.message == "--good bad (position 900) is not older than --bad good (position 100)"


@pytest.mark.slow
async def test_a_command_that_cannot_be_run_or_dies_is_no_verdict(states: FileStates) -> None:
    error = await refused(states, wanted("no-such-program", "{os}"))
    assert (error.code, error.message) == (
        "CommandUnusable",
        "CMD: no-such-program cannot be run: No such file or directory",
    )
    error = await refused(states, wanted("sh", "-c", "kill -SEGV $$; : {os}"))
    assert error.message.startswith("CMD was killed by SIGSEGV: that is neither passed (0) nor failed (1 to 127)")
    error = await refused(states, wanted("sh", "-c", "exit 130; : {os}"))
    assert (error.code, error.message.split(":")[0]) == ("CommandDied", "CMD ended with status 130")


@pytest.mark.slow
async def test_a_run_that_takes_too_long_fails_and_its_children_are_ended(states: FileStates, tmp_path: Path) -> None:
    pids = tmp_path.parent / "pids"
    script = f"grep -q EVIL {{os}} {{data}} || exit 0; sleep 1000 & echo $! >> {pids}; wait"
    report, trials, _ = await searched(states, wanted("sh", "-c", script, timeout_s=0.3))
    assert report.bad.position == states.evil.position
    assert str(trials[1].outcome) == "failed (time ran out)"
    for pid in pids.read_text().split():
        with trio.fail_after(60):
            while Path(f"/proc/{pid}").exists() and "(zombie)" not in Path(f"/proc/{pid}/status").read_text():  # noqa: ASYNC110
                await trio.sleep(0.01)


@pytest.mark.slow
async def test_ctrl_c_ends_the_command_and_leaves_nothing_mounted(states: FileStates) -> None:
    began_s = time.monotonic()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(searched, states, wanted("sh", "-c", "sleep 1000; : {os}"))
            while not states.open_names:  # noqa: ASYNC110
                await trio.sleep(0.01)
            await trio.sleep(0.05)
            scope.cancel()
    assert time.monotonic() - began_s < 30
    assert (states.open_names, list(states.folder.iterdir())) == (set(), [])


@pytest.mark.slow
async def test_things_that_cannot_be_removed_are_reported_and_hide_no_error(states: FileStates) -> None:
    states.close_fails = {"s1"}
    notes: list[str] = []
    with pytest.raises(RigError, match="does not fail at the bad point"):
        await Bisection(states, wanted("true", "{os}"), lambda _trial: None, notes.append).run()
    assert notes == ["a state could not be removed: CMD left /dev/loop9"]
    assert states.open_names == {"s1"}


@pytest.mark.slow
async def test_things_that_the_command_leaves_are_named(tmp_path: Path) -> None:
    image = tmp_path / "os.img"
    image.write_bytes(bytes(4096))
    holder = await trio.lowlevel.open_process(["sh", "-c", f"exec 3< {image}; exec sleep 1000"])
    try:
        with trio.fail_after(60):
            error = RigError(Code.RecoveryInUse, "in use")
            while (found := await resources_in_use({"os": image}, error)) is error:  # noqa: ASYNC110
                await trio.sleep(0.01)
    finally:
        holder.send_signal(signal.SIGKILL)
        await holder.wait()
    assert found.message == (
        f"CMD left resources in use: process sleep ({holder.pid}), with {image} open; "
        "it must remove everything that it creates"
    )


# --- the words ----------------------------------------------------------------------------------------------------


def words(*given: str) -> list[str]:
    made = CheckCommand(list(given), ["os", "data"], timeout_s=None, echo=False)
    return made.words({"os": Path("/m/os.img"), "data": Path("/m/data.img")})


def test_names_in_braces_stand_for_images() -> None:
    assert words("cmp", "{os}", "a{data}b{os}", "{{os}}", "}}{{") == [
        "cmp",
        "/m/os.img",
        "a/m/data.imgb/m/os.img",
        "{os}",
        "}{",
    ]


@pytest.mark.parametrize(
    ("word", "part"), [("{boot}", "{boot}"), ("awk {print}", "{print}"), ("a{", "{"), ("}", "}"), ("{}", "{}")]
)
def test_a_name_that_is_none_lists_the_disks(word: str, part: str) -> None:
    with pytest.raises(RigError) as failed:
        words(word)
    assert failed.value.message == (
        f"CMD: {part} in {word!r} names no disk: there are {{data}}, {{os}}; a brace is written {{{{ or }}}}"
    )


@pytest.mark.slow
async def test_a_command_without_a_disk_gets_a_note(states: FileStates) -> None:
    notes: list[str] = []
    with pytest.raises(RigError, match="does not fail at the bad point"):
        await Bisection(states, wanted("true"), lambda _trial: None, notes.append).run()
    assert notes == [
        "CMD names no disk ({data}, {os}): it checks the same data in each state, unless it finds the disks by itself"
    ]


@pytest.mark.slow
async def test_the_command_gets_no_input_and_the_end_of_its_output_is_kept() -> None:
    made = CheckCommand(["sh", "-c", "cat; head -c 100000 /dev/zero; echo end >&2; exit 1"], [], timeout_s=None, echo=False)
    outcome = await made.run({})
    assert (outcome.verdict, outcome.output_bytes, len(outcome.output)) == ("failed", 100_004, 64 << 10)
    assert outcome.output.endswith(b"\0end\n")


# --- the difference -----------------------------------------------------------------------------------------------


def test_the_first_rows_that_differ_are_shown_and_all_are_counted(tmp_path: Path) -> None:
    before = random.Random(3).randbytes(300_000)
    after = bytearray(before)
    for at in range(70_001, 290_000, 1009):
        after[at] ^= 1
    (tmp_path / "a").write_bytes(before)
    (tmp_path / "b").write_bytes(after)
    found = hexdiff.compare(tmp_path / "a", tmp_path / "b", 12_345, 280_000)
    expected = [at for at in range(70_001, 290_000, 1009) if at < 12_345 + 280_000]
    assert (found.changed_bytes, found.changed_rows, found.looked_bytes) == (len(expected), len(expected), 280_000)
    assert [row.offset for row in found.rows] == [at // 16 * 16 for at in expected[:8]]
    assert found.rows[0].before == before[70_000:70_016]


@pytest.mark.parametrize("offset", [0, 5, 16, 65_530, 65_536])
def test_rows_begin_at_whole_sixteens_but_for_the_first(tmp_path: Path, offset: int) -> None:
    (tmp_path / "a").write_bytes(bytes(200_000))
    (tmp_path / "b").write_bytes(b"x" * 200_000)
    found = hexdiff.compare(tmp_path / "a", tmp_path / "b", offset, 40)
    assert found.changed_bytes == 40
    assert [row.offset for row in found.rows] == [offset, *range(offset // 16 * 16 + 16, offset + 40, 16)]
    assert b"".join(row.after for row in found.rows) == b"x" * 40


def test_a_row_is_as_hexdump_writes_it() -> None:
    assert hexdiff.row_text(0x1234, b"siterig\n\xff\x00rest!.") == (
        "00001234  73 69 74 65 72 69 67 0a  ff 00 72 65 73 74 21 2e  |siterig...rest!.|"
    )
    assert hexdiff.row_text(0, b"ab") == "00000000  61 62".ljust(60) + "|ab|"


# --- what is printed ----------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_the_report_in_words_and_in_json(states: FileStates, capsys: pytest.CaptureFixture[str]) -> None:
    report, trials, _ = await searched(states, wanted("sh", "-c", "echo looking; ! grep -q EVIL {os} {data}"))
    command.print_report(report, verbose=False, keep=False)
    sys.stdout.flush()
    printed = capsys.readouterr()
    assert printed.err == "--- output of CMD when it failed last:\nlooking\n---\n"
    evil = states.evil
    before = evil.position - 1
    assert printed.out.splitlines() == [
        f"first bad position: {evil.position} ({rfc3339(evil.position * 10**9)})",
        f"last good position: {report.good.position} ({rfc3339(report.good.position * 10**9)})",
        f"point before: id-{before}, CrashConsistent, {rfc3339(before)}, position {before}",
        "point after: -",
        "",
        f"WRITE on disk {evil.disk}: 4 bytes at 65520 (0xfff0)",
        "  changed 4 bytes; before (-) and after (+):",
        "  - " + "0000fff0  00 00 00 00".ljust(60) + "|....|",
        "  + " + "0000fff0  45 56 49 4c".ljust(60) + "|EVIL|",
    ]
    found = command.report_json("web01", report, trials, keep=False)
    assert found["first_bad"] == {"position": evil.position, "time": rfc3339(evil.position * 10**9), "mounted": None}
    (change,) = found["changes"]  # type: ignore[misc]
    assert change["lines"] == [{"offset": 65520, "before": "00000000", "after": "4556494c"}]  # type: ignore[has-type]
    assert command.trial_line(3, trials[2]).startswith(f"3. position {trials[2].position} (")
    assert command.trial_line(3, trials[2]).endswith("to go")
