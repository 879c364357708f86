"""The schedule of faults: the same seed and operations give the same faults, and every rule is judged."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siterig.blockfs.core.errors import RigError
from siterig.scenarios.faults.operations import FaultOperation
from siterig.scenarios.faults.records import Injection
from siterig.scenarios.faults.rules import read_rule
from siterig.scenarios.faults.schedule import ArmedRule, FaultListener, FaultSchedule
from tests.support.clocks import SettableClock
from tests.support.repo.examples import examples

SECOND = 1_000_000_000


def schedule(*lines: str, seed: int = 1) -> tuple[FaultSchedule, SettableClock]:
    clock = SettableClock()
    made = FaultSchedule(seed, clock=clock)
    for line in lines:
        made.add([read_rule(line)])
    return made, clock


def disk(
    op: str, start: int | None = 0, length: int = 4096, *, vm: str = "web01", position: int | None = None
) -> FaultOperation:
    return FaultOperation("disk", op, {"vm": vm, "disk": "data"}, start=start, length=length, position=position)


def fired(made: FaultSchedule, operations: list[FaultOperation]) -> list[tuple[int, str, int]]:
    return [
        (number, decision.label, decision.n)
        for number, operation in enumerate(operations)
        for decision in made.decide(operation)
    ]


OPERATIONS = st.lists(
    st.builds(
        disk, st.sampled_from(["read", "write", "flush"]), st.integers(0, 64).map(lambda block: block * 4096), st.just(4096)
    ),
    max_size=60,
)
RULES = [
    "disk write error=EIO probability=0.3 name=a",
    "disk write,read delay=5ms jitter=2ms every=3 name=b",
    "disk read flip.bits=3 occurrence=4 every=2 times=3 name=c",
    "disk write start=64KiB length=64KiB tear=true name=d",
]


@settings(max_examples=examples(60))
@given(st.integers(0, 1 << 62), OPERATIONS)
def test_the_same_seed_and_operations_give_the_same_faults(seed: int, operations: list[FaultOperation]) -> None:
    one, _ = schedule(*RULES, seed=seed)
    other, _ = schedule(*RULES, seed=seed)
    assert fired(one, operations) == fired(other, operations)


@settings(max_examples=examples(60))
@given(st.integers(0, 1 << 62), OPERATIONS, st.sampled_from(range(len(RULES))))
def test_a_rule_decides_without_regard_to_other_rules(seed: int, operations: list[FaultOperation], which: int) -> None:
    alone, _ = schedule(RULES[which], seed=seed)
    beside, _ = schedule(*reversed(RULES), seed=seed)
    name = read_rule(RULES[which]).label
    assert fired(alone, operations) == [item for item in fired(beside, operations) if item[1] == name]


@settings(max_examples=examples(60))
@given(st.integers(0, 1 << 62), OPERATIONS)
def test_operations_that_do_not_match_change_nothing(seed: int, operations: list[FaultOperation]) -> None:
    with_others, _ = schedule(RULES[0], seed=seed)
    without, _ = schedule(RULES[0], seed=seed)
    writes = [operation for operation in operations if operation.op == "write"]
    assert [n for _, _, n in fired(with_others, operations)] == [n for _, _, n in fired(without, writes)]


def test_seeds_and_names_give_other_faults() -> None:
    operations = [disk("write")] * 200
    line = "disk write error=EIO probability=0.5"
    found = [
        [n for _, _, n in fired(schedule(*lines, seed=seed)[0], operations)]
        for lines, seed in (
            ([line], 1),
            ([line], 2),
            ([f"{line} name=x"], 1),
            ([f"{line} seed=9"], 1),
        )
    ]
    assert len({tuple(numbers) for numbers in found}) == 4


def test_the_place_of_a_rule_is_all_its_keys() -> None:
    made, _ = schedule(
        "disk web*/data write start=8KiB length=4KiB error=EIO", "link agent-* stream=upstream connection=reset"
    )
    assert not made.decide(disk("write", 4096))
    assert not made.decide(disk("read", 8192))
    assert not made.decide(disk("write", 8192, vm="db01"))
    assert not made.decide(disk("write", 12288))
    assert made.decide(disk("write", 4096, 4097))
    assert made.decide(disk("write", 12287, 1))
    assert made.decide(FaultOperation("link", "send", {"link": "agent-vault"}, "upstream"))
    assert not made.decide(FaultOperation("link", "send", {"link": "agent-vault"}, "downstream"))
    assert not made.decide(FaultOperation("link", "send", {}, "upstream"))


def test_an_operation_without_bytes_is_in_every_range() -> None:
    made, _ = schedule("disk write,flush start=8KiB length=4KiB error=EIO")
    assert made.decide(disk("flush", None))


def test_the_ranges_of_a_file_are_those_at_arming() -> None:
    made = FaultSchedule(1, clock=SettableClock())
    made.add([read_rule("disk write file=/var/lib/db error=EIO")], lambda rule: [(4096, 4096), (65536, 8192)])
    assert [bool(made.decide(disk("write", start, 512))) for start in (0, 4096, 8192, 65536, 73728)] == [
        False,
        True,
        False,
        True,
        False,
    ]


# --- windows -------------------------------------------------------------------------------------------------------


def test_a_rule_counts_from_the_moment_of_after() -> None:
    made, _ = schedule("disk write error=EIO occurrence=2 after=event:EnableDrStarted")
    assert not fired(made, [disk("write")] * 3)
    made.note_event("EnableDrStarted")
    assert [number for number, _, _ in fired(made, [disk("write")] * 4)] == [1]


def test_an_event_before_the_arming_does_not_count_and_a_mark_does() -> None:
    made = FaultSchedule(1, clock=SettableClock())
    made.note_event("EnableDrStarted")
    made.note_mark("ready")
    made.add(map(read_rule, ("disk error=EIO after=event:EnableDrStarted name=e", "disk error=EIO after=mark:ready name=m")))
    assert [decision.label for decision in made.decide(disk("write"))] == ["m"]
    made.note_event("EnableDrStarted")
    assert [decision.label for decision in made.decide(disk("write"))] == ["e", "m"]


def test_times_count_from_the_arming_and_durations_from_the_window() -> None:
    made, clock = schedule("disk write error=EIO after=time:30s for=20s")
    assert made.next_change_ns() == clock.monotonic_ns() + 30 * SECOND
    clock.advance_ns(30 * SECOND - 1)
    assert not made.decide(disk("write"))
    clock.advance_ns(1)
    assert made.decide(disk("write"))
    assert made.next_change_ns() == clock.monotonic_ns() + 20 * SECOND
    clock.advance_ns(20 * SECOND)
    assert not made.decide(disk("write"))
    assert made.next_change_ns() is None
    assert [status.state for status in made.status()] == ["over"]


def test_a_position_opens_a_window_at_the_operation_that_reaches_it() -> None:
    made, _ = schedule("disk write error=EIO after=position:100")
    assert not made.decide(disk("write", position=99))
    assert made.decide(disk("write", position=100))


def test_until_closes_a_window_for_good() -> None:
    made, _ = schedule("disk write error=EIO after=mark:a until=mark:b")
    made.note_mark("a")
    assert made.decide(disk("write"))
    made.note_mark("b")
    made.note_mark("a")
    assert not made.decide(disk("write"))


def test_a_rule_that_waits_for_another_begins_after_its_operation() -> None:
    made, _ = schedule("disk write error=EIO occurrence=2 name=first", "disk write flip=true after=fault:first name=then")
    assert fired(made, [disk("write")] * 4) == [(1, "first", 2), (2, "then", 1), (3, "then", 2)]


def test_a_mark_that_a_rule_sets_opens_others_after_its_operation() -> None:
    made, _ = schedule("disk flush mark=flushed times=1 name=m", "disk write error=EIO after=mark:flushed times=1 name=w")
    assert fired(made, [disk("write"), disk("flush", None), disk("write")]) == [(1, "m", 1), (2, "w", 1)]


def test_a_file_switches_a_rule_on_and_off(tmp_path: Path) -> None:
    path = tmp_path / "armed"
    made, _ = schedule(f"disk write error=EIO while_file={path}")
    assert not made.decide(disk("write"))
    path.touch()
    assert made.decide(disk("write"))
    path.unlink()
    assert not made.decide(disk("write"))
    assert made.status()[0].matched == 1


# --- immediate faults ----------------------------------------------------------------------------------------------


class Heard(FaultListener):
    """Everything that a listener heard."""

    def __init__(self) -> None:
        self.windows: list[tuple[str, bool]] = []
        self.removed: list[str] = []
        self.injections: list[Injection] = []

    def window_changed(self, armed: ArmedRule) -> None:
        self.windows.append((armed.label, armed.window.is_open))

    def rule_removed(self, armed: ArmedRule) -> None:
        self.removed.append(armed.label)

    def injected(self, injection: Injection) -> None:
        self.injections.append(injection)


def test_an_immediate_fault_is_due_when_its_window_opens_and_only_once() -> None:
    made, clock = schedule("process agent kill=SIGKILL after=time:5s name=kill")
    heard = Heard()
    made.subscribe(heard)
    assert made.decide_immediate("kill") is None
    clock.advance_ns(5 * SECOND)
    made.refresh()
    assert heard.windows == [("kill", True)]
    decision = made.decide_immediate("kill")
    assert decision is not None
    made.record(decision, "killed agent with SIGKILL")
    assert made.decide_immediate("kill") is None
    made.remove("kill")
    assert heard.removed == ["kill"]
    assert [(each.sequence, each.rule, each.operation) for each in heard.injections] == [(1, "kill", "-")]


def test_an_immediate_fault_follows_another_rule_at_once() -> None:
    made, _ = schedule(
        "disk write error=EIO occurrence=2 name=first", "process agent kill=SIGKILL after=fault:first name=kill"
    )
    heard = Heard()
    made.subscribe(heard)
    made.decide(disk("write"))
    assert heard.windows == []
    made.decide(disk("write"))
    assert heard.windows == [("kill", True)]


# --- records and verdicts ------------------------------------------------------------------------------------------


def test_each_injection_is_recorded_with_its_effect() -> None:
    made, clock = schedule("disk write tear.parts=2 tear.keep=1 every=2 name=torn")
    for position in (7, 8, 9, 10):
        for decision in made.decide(disk("write", 4096, 4096, position=position)):
            assert decision.torn_ranges(4096) == [(0, 2048)]
            made.record(decision, "torn: 2048 of 4096 bytes kept", [(6144, 2048)])
            clock.advance_ns(SECOND)
    first, second = made.injections
    assert (first.sequence, first.n, first.position, first.ranges) == (1, 2, 8, ((6144, 2048),))
    assert (second.sequence, second.n, second.operation) == (2, 4, "write web01/data, 4096 bytes at 4096")
    assert first.time < second.time
    assert Injection.model_validate_json(first.model_dump_json()) == first


def test_a_rule_that_never_fired_fails_with_the_reason() -> None:
    made, _ = schedule(
        "disk read error=EIO name=unmatched",
        "disk write error=EIO after=event:VmProtected name=waiting",
        "disk write error=EIO occurrence=9 name=early",
        "disk write error=EIO fired=2..3 name=range",
        "disk discard error=EIO fired=any name=free",
    )
    made.decide(disk("write"))
    made.decide(disk("write"))
    made.remove("unmatched")
    verdicts = {verdict.name: verdict for verdict in made.verdicts()}
    assert {name: verdict.ok for name, verdict in verdicts.items()} == {
        "unmatched": False,
        "waiting": False,
        "early": False,
        "range": True,
        "free": True,
    }
    assert verdicts["unmatched"].text == "fault 'unmatched' fired never; expected: >=1; no operation matched it"
    assert "its window did not open: event:VmProtected did not come" in verdicts["waiting"].text
    assert "2 times an operation matched it" in verdicts["early"].text


def test_the_status_shows_counts_and_the_last_time() -> None:
    made, clock = schedule("disk write error=EIO times=1 name=a", "disk write error=EIO after=mark:m name=b")
    clock.advance_ns(SECOND)
    fired(made, [disk("write")] * 3)
    one, other = made.status()
    assert (one.state, one.matched, one.fired, one.last) == ("armed", 3, 1, "2027-01-15T08:00:01.000000Z")
    assert (other.state, other.matched, other.last) == ("waiting", 0, None)


def test_counts_of_the_c_core_open_windows_and_are_judged() -> None:
    made, _ = schedule("disk write error=EIO name=c", "disk read error=EIO after=fault:c name=then")
    made.adopt_counts("c", matched=10, fired=2, last_ns=1_800_000_000_000_000_000)
    assert made.decide(disk("read"))
    assert [(status.matched, status.fired) for status in made.status()] == [(10, 2), (1, 1)]


def test_rules_are_armed_all_or_none() -> None:
    made, _ = schedule("disk write error=EIO name=a")
    with pytest.raises(RigError) as caught:
        made.add(map(read_rule, ("disk read error=EIO name=b", "disk read error=EIO name=a")))
    assert "fault[2].name: another rule with the name 'a' is armed" in caught.value.message
    assert [armed.label for armed in made.armed()] == ["a"]
    with pytest.raises(RigError) as caught:
        made.remove("aa")
    assert caught.value.message == "there is no fault 'aa' (did you mean a?); there are: a"
    assert made.clear() == 1


def test_threads_count_every_operation_once() -> None:
    made, _ = schedule("disk write error=EIO every=2 times=300 name=a")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: len(made.decide(disk("write"))), range(1000)))
    assert sum(found) == 300
    assert made.status()[0].matched == 1000


# --- recoverable ---------------------------------------------------------------------------------------------------


def test_the_first_rule_that_spares_copies_has_the_seed_of_the_atlas() -> None:
    made, _ = schedule(
        "store read flip=true recoverable=true name=reads", "log append flip=true recoverable=true name=a", seed=5
    )
    made.add([read_rule("store write flip=true recoverable=true name=b")], seed=6)
    assert made.atlas_seed == 5
    only_reads, _ = schedule("store read flip=true recoverable=true")
    assert only_reads.atlas_seed is None
    only_reads.add([read_rule("store write flip=true recoverable=true name=b")], seed=6)
    assert only_reads.atlas_seed == 6


def test_faults_that_another_process_spared_are_shown() -> None:
    made, _ = schedule("log append flip=true recoverable=true name=a")
    made.adopt_counts("a", matched=4, fired=0, last_ns=None, spared=4)
    assert (made.status()[0].spared, made.verdicts()[0].ok) == (4, False)
    assert "and 4 times the fault would not have been recoverable" in made.verdicts()[0].text


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (
            FaultOperation("disk", "write", {"vm": "web01", "disk": "data"}, start=4096, length=512),
            "write web01/data, 512 bytes at 4096",
        ),
        (FaultOperation("disk", "flush", {"vm": "web01", "disk": "data"}), "flush web01/data"),
        (
            FaultOperation("log", "append", {"vm": "a", "disk": "b", "part": "segment"}, start=0, length=9),
            "append a/b/segment, 9 bytes at 0",
        ),
        (
            FaultOperation("link", "send", {"link": "agent-vault", "role": "agent"}, stream="upstream"),
            "send agent-vault upstream",
        ),
        (
            FaultOperation("blob", "PutBlob", {"blob": "cache/a", "role": "agent"}, length=9),
            "PutBlob cache/a by agent, 9 bytes",
        ),
        (FaultOperation("process", "start", {"role": "agent"}), "start agent"),
        (FaultOperation("store", "-", {"vm": "a", "disk": "b", "part": "base"}), "a/b/base"),
        (FaultOperation("clock", "-"), "-"),
    ],
)
def test_the_words_of_an_operation_have_one_form_on_every_layer(operation: FaultOperation, words: str) -> None:
    assert operation.title() == words
