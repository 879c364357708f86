"""Fault files of LazyFS, Toxiproxy and QEMU blkdebug become rules; what cannot be expressed is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from siterig.blockfs.core.errors import RigError
from siterig.scenarios.faults.importers.blkdebug import import_blkdebug
from siterig.scenarios.faults.importers.formats import FORMATS, import_file
from siterig.scenarios.faults.importers.imported import ImportedRules
from siterig.scenarios.faults.importers.lazyfs import import_lazyfs
from siterig.scenarios.faults.importers.toxiproxy import import_toxiproxy
from siterig.scenarios.faults.operations import FaultOperation
from siterig.scenarios.faults.rule_files import parse_rules, rules_text
from siterig.scenarios.faults.schedule import FaultSchedule
from tests.support.clocks import SettableClock


def words(imported: ImportedRules) -> list[str]:
    """Return the rules without their names; a TOML file of them reads as the same rules."""
    rules = imported.rules
    assert parse_rules("imported.toml", rules_text(rules, imported.notes)) == rules
    return [rule.model_copy(update={"name": None}).words() for rule in rules.fault]


LAZYFS = """
[faults]
fifo_path="/run/lazyfs.fifo"

[cache]
apply_eviction=false

[cache.simple]
custom_size="0.5GB"
blocks_per_page=1

[[injection]]
type="torn-op"
file="db/wal.log"
occurrence=5
parts=3
persist=[1,3]

[[injection]]
type="torn-op"
file="/db/pages"
occurrence=2
parts_bytes=[4096,3600,1260]
persist=[2]

[[injection]]
type="torn-seq"
op="write"
file="/db/index"
persist=[4,1]
occurrence=1

[[injection]]
type="clear-cache"
from="/db/wal.log"
timing="after"
op="fsync"
occurrence=6
crash=true

[[injection]]
type="clear"
from="/db/wal.log"
timing="before"
op="write"
occurrence=1
crash=false
"""


def test_injections_of_lazyfs_become_power_losses() -> None:
    imported = import_lazyfs("lazyfs.toml", LAZYFS)
    assert words(imported) == [
        "disk write file=/db/wal.log occurrence=5 tear.parts=3 tear.keep=1,3 lose=unflushed",
        "disk write file=/db/pages occurrence=2 tear.sizes=4096,3600,1260 tear.keep=2 lose=unflushed",
        "disk write file=/db/index occurrence=4 timing=after lose=unflushed survive=4,1",
        "disk flush occurrence=6 timing=after lose=unflushed crash=true",
        "disk write file=/db/wal.log occurrence=1 lose=unflushed crash=false",
    ]
    assert imported.rules.fault[0].label == "lazyfs 1: torn-op db/wal.log"
    assert "settings of LazyFS itself were left out: faults, cache" in imported.notes


def refused(load: Any, source: str) -> str:
    with pytest.raises(RigError) as caught:
        load("file", source)
    assert caught.value.code == "FaultNotImported"
    return caught.value.message


@pytest.mark.parametrize(
    ("now", "then", "message"),
    [
        ("parts=3", "", "file: injection[1]: has both of parts and parts_bytes, or none"),
        ("parts=3", "prats=3", "file: injection[1].prats: unknown key (did you mean parts?); allowed: type, file, op"),
        (
            "persist=[1,3]",
            "persist=[1,4]",
            "file: injection[1]: fault: what.tear.keep: part 4 cannot be kept; allowed: 1 to 3",
        ),
        ("persist=[2]", "", "file: injection[2].persist: is missing"),
        (
            "occurrence=5",
            "occurrence=0",
            "file: injection[1].occurrence: 0 is not allowed: write a whole number of at least 1",
        ),
        (
            '"torn-seq"',
            '"torn-sec"',
            "file: injection[3].type: 'torn-sec' is unknown (did you mean torn-seq?); allowed: torn-op",
        ),
        ('type="torn-seq"\nop="write"', 'type="torn-seq"\nop="read"', "file: injection[3].op: 'read' is not allowed"),
        (
            "persist=[4,1]\noccurrence=1",
            "persist=[4,1]\noccurrence=2",
            "file: injection[3].occurrence: is not 1: a disk does",
        ),
        ("persist=[4,1]", "persist=[]", "file: injection[3].persist: [] is not allowed"),
        ('op="fsync"', 'op="rename"', "file: injection[4].op: 'rename' has no counterpart: a disk sees no names of files"),
        ('op="fsync"', 'op="fsync"\nto="/b"', "file: injection[4].to: '/b' has no counterpart"),
        ('timing="after"', 'timing="during"', "file: injection[4].timing: 'during' is not allowed: write before or after"),
        ("crash=true", 'crash="yes"', "file: injection[4].crash: 'yes' is not allowed: write true or false"),
        ("[cache]", "[cash]", "file.cash: unknown key (did you mean cache?); allowed: faults, cache"),
        ("[faults]", "[faults", "file: this is no TOML"),
    ],
)
def test_an_injection_of_lazyfs_without_counterpart_is_refused(now: str, then: str, message: str) -> None:
    assert now in LAZYFS
    assert message in refused(import_lazyfs, LAZYFS.replace(now, then, 1))


def test_a_lazyfs_file_without_injections_is_refused() -> None:
    assert "there is no [[injection]]" in refused(import_lazyfs, LAZYFS.partition("[[")[0])


def test_the_example_in_the_readme_of_lazyfs_is_read() -> None:
    """It has a table that is no TOML, ``[file system]``."""
    source = LAZYFS.replace("[[injection]]", '[file system]\nlogfile="/l"\n\n[[injection]]', 1)
    assert len(import_lazyfs("lazyfs.toml", source).rules.fault) == 5


def test_a_path_of_lazyfs_is_no_pattern() -> None:
    source = LAZYFS.replace('file="/db/index"', 'file="/db/index[1]*?.db"')
    assert "file='/db/index[[]1][*][?].db'" in words(import_lazyfs("l", source))[2]


def proxy(*toxics: dict[str, Any], **extra: Any) -> str:
    return json.dumps([{"name": "agent-azurite", "listen": "a:1", "upstream": "b:2", "toxics": list(toxics)} | extra])


def toxic(kind: str, **attributes: Any) -> dict[str, Any]:
    return {"name": "t", "type": kind, "stream": "upstream", "toxicity": 1.0, "attributes": attributes}


@pytest.mark.parametrize(
    ("kind", "attributes", "line"),
    [
        ("latency", {"latency": 1000, "jitter": 50}, "delay=1s jitter=50ms"),
        ("latency", {"latency": 20}, "delay=20ms"),
        ("bandwidth", {"rate": 100}, "rate=100000B/s"),
        ("slow_close", {"delay": 500}, "connection=slow-close close_after=500ms"),
        ("timeout", {"timeout": 0}, "connection=black-hole"),
        ("timeout", {"timeout": 5000}, "connection=black-hole close_after=5s"),
        ("reset_peer", {}, "connection=reset"),
        ("reset_peer", {"timeout": 10}, "connection=reset close_after=10ms"),
        ("limit_data", {"bytes": 4096}, "cut_after=4KiB"),
    ],
)
def test_toxics_become_faults_of_links(kind: str, attributes: dict[str, Any], line: str) -> None:
    imported = import_toxiproxy("t.json", proxy(toxic(kind, **attributes)))
    assert words(imported) == [f"link agent-azurite stream=upstream {line}"]
    assert imported.rules.fault[0].label == "agent-azurite t"


def test_proxies_are_read_from_a_configuration_and_from_the_api() -> None:
    down = json.loads(proxy(enabled=False))[0]
    slow = {
        "name": "slow",
        "listen": "a:1",
        "upstream": "b:2",
        "toxics": [{"type": "latency", "attributes": {"latency": 5}}],
    }
    expected = ["link agent-azurite connection=refuse", "link slow stream=downstream delay=5ms"]
    assert words(import_toxiproxy("t.json", json.dumps([down, slow]))) == expected
    assert words(import_toxiproxy("t.json", json.dumps({"agent-azurite": down, "slow": slow}))) == expected
    assert words(import_toxiproxy("t.json", json.dumps(slow))) == expected[1:]


def test_keys_have_any_case_as_in_the_example_of_toxiproxy() -> None:
    """``config.json`` of Shopify/toxiproxy has ``Name``, ``Listen`` and ``Upstream``."""
    source = '[{"Name": "web", "Listen": "0.0.0.0:1081", "Upstream": "web:80", "enabled": false}]'
    assert words(import_toxiproxy("t.json", source)) == ["link web connection=refuse"]


def test_toxicity_is_a_probability_for_each_connection() -> None:
    imported = import_toxiproxy("t.json", proxy(toxic("reset_peer") | {"toxicity": 0.25}))
    assert words(imported) == ["link agent-azurite connect stream=upstream probability=0.25 connection=reset"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{", "file: this is no JSON"),
        ("[]", "file: there is no toxic, and no proxy that is not enabled"),
        ("[3]", "file: proxy[1]: '3' is no proxy"),
        (proxy(toxic("slicer", average_size=64)), "file: proxy[1].toxics[1].type: 'slicer' is not possible: no rule cuts"),
        (proxy(toxic("latancy")), "file: proxy[1].toxics[1].type: 'latancy' is unknown (did you mean latency?); allowed:"),
        (proxy(toxic("latency", delay=3)), "file: proxy[1].toxics[1].attributes.delay: unknown key"),
        (proxy(toxic("latency", latency="3")), "file: proxy[1].toxics[1].attributes.latency: '3' is not allowed"),
        (proxy(toxic("bandwidth", rate=0)), "attributes.rate: 0 is not allowed: write a whole number of at least 1"),
        (proxy(toxic("latency") | {"toxicity": 0.5}), "toxics[1].toxicity: 0.5: toxicity below 1 chooses connections"),
        (proxy(toxic("timeout") | {"toxicity": 2}), "toxics[1].toxicity: 2 is not allowed"),
        (proxy(toxic("timeout") | {"stream": "up"}), "toxics[1].stream: 'up' is not allowed: write upstream or downstream"),
        (proxy(port=3), "file: proxy[1].port: unknown key"),
        (proxy(toxics={}), "file: proxy[1].toxics: is not a list of objects"),
        (json.dumps({"a": {"toxics": []}}), "file: a.name: is missing"),
        (proxy(enabled="no"), "file: proxy[1].enabled: 'no' is not allowed: write true or false"),
        (
            proxy(toxic("timeout"), toxic("reset_peer")),
            "file: proxy[1].toxics[2]: the rule would have the name 'agent-azurite t', as that of file: proxy[1].toxics[1]",
        ),
        (
            proxy(toxic("timeout") | {"name": "down"}, enabled=False),
            "file: proxy[1].toxics[1]: the rule would have the name 'agent-azurite down', as that of file: proxy[1]: rename",
        ),
    ],
)
def test_a_toxic_without_counterpart_is_refused(source: str, message: str) -> None:
    assert message in refused(import_toxiproxy, source)


def test_a_toxic_that_does_nothing_is_left_out_with_a_note() -> None:
    imported = import_toxiproxy("t.json", proxy(toxic("noop"), toxic("timeout")))
    assert len(imported.rules.fault) == 1
    assert "the toxic 't' of 'agent-azurite' does nothing, and was left out" in imported.notes


BLKDEBUG = """\
# the second write after a flush fails
[set-state]
event = "flush_to_disk"
state = "1"
new_state = "2"

[set-state]
event = "write_aio"
state = "2"
new_state = "3"

[inject-error]
event = "write_aio"
state = "3"
errno = "28"
once = "on"

[inject-error]
event = "none"
iotype = "read"
sector = "41000"
immediately = "off"
"""


def test_rules_of_blkdebug_become_errors_and_marks() -> None:
    assert words(import_blkdebug("b.conf", BLKDEBUG)) == [
        "disk flush times=1 mark=blkdebug-state-2 fired=any",
        "disk write after=mark:blkdebug-state-2 times=1 mark=blkdebug-state-3 fired=any",
        "disk write after=mark:blkdebug-state-3 times=1 error=ENOSPC",
        "disk read start=20500KiB length=512B error=EIO",
    ]


def test_the_state_machine_of_blkdebug_fails_the_same_operation() -> None:
    schedule = FaultSchedule(1, clock=SettableClock())
    schedule.add(import_blkdebug("b.conf", BLKDEBUG).rules.fault)
    operations = ["write", "write", "flush", "write", "write", "write", "flush", "write"]
    failed = [
        number
        for number, op in enumerate(operations)
        for decision in schedule.decide(FaultOperation("disk", op, {"vm": "v", "disk": "d"}, start=0, length=512))
        if decision.rule.what.error is not None
    ]
    assert failed == [4]


def test_the_only_transition_may_leave_any_state() -> None:
    """``prepare_blkdebug_script`` of QEMU's tests/qtest/libqos writes such a file: one flush fails."""
    source = """
        [inject-error]
        event = "flush_to_disk"
        errno = "5"
        state = "1"
        immediately = "off"
        once = "on"
        [set-state]
        event = "flush_to_disk"
        new_state = "2"
    """
    expected = ["disk flush times=1 mark=blkdebug-state-2 fired=any"]
    expected.append("disk flush until=mark:blkdebug-state-2 times=1 error=EIO")
    assert words(import_blkdebug("b.conf", source)) == expected


ONCE = '[inject-error]\nevent = "write_aio"\nsector = "8"\nonce = "on"\n'


def test_equal_errors_of_blkdebug_fail_one_operation_after_the_other() -> None:
    imported = import_blkdebug("b.conf", ONCE * 3)
    assert words(imported) == ["disk write start=4KiB length=512B times=3 error=EIO"]
    schedule = FaultSchedule(1, clock=SettableClock())
    schedule.add(imported.rules.fault)
    write = FaultOperation("disk", "write", {"vm": "v", "disk": "d"}, start=4096, length=512)
    assert [len(schedule.decide(write)) for _ in range(4)] == [1, 1, 1, 0]


@pytest.mark.parametrize("change", [('sector = "8"\n', ""), ("once", 'errno = "28"\nonce'), ("sector", "state = 1\nsector")])
def test_different_errors_of_blkdebug_that_one_operation_can_meet_are_refused(change: tuple[str, str]) -> None:
    source = ONCE + ONCE.replace(*change)
    assert "file:5: inject-error.once: an operation can meet file:1: inject-error, too" in refused(import_blkdebug, source)
    apart = ONCE.replace('"8"', '"9"')
    assert len(words(import_blkdebug("b.conf", ONCE + apart))) == 2


def test_the_core_events_of_blkdebug_are_operations() -> None:
    for event, op in (("read_aio", "read"), ("pwritev", "write"), ("pwritev_zero", "zero"), ("flush_to_disk", "flush")):
        assert words(import_blkdebug("b", f'[inject-error]\nevent = "{event}"\n')) == [f"disk {op} error=EIO"]
    everything = words(import_blkdebug("b", "[inject-error]\nevent = none\nerrno = 0x5\n"))
    assert everything == ["disk read,write,zero,discard,flush error=EIO"]


@pytest.mark.parametrize(
    ("now", "then", "message"),
    [
        ("[inject-error]", "[inject-eror]", "file:12: the section [inject-eror] is unknown (did you mean inject-error?)"),
        (
            'event = "write_aio"\nstate = "3"',
            'event = "l2_load"\nstate = "3"',
            "file:12: inject-error.event: 'l2_load' has no",
        ),
        (
            'event = "none"',
            'event = "flush_to_os"',
            "inject-error.event: 'flush_to_os' has no counterpart (did you mean flush_to",
        ),
        ('iotype = "read"', 'iotype = "block-status"', "inject-error.iotype: 'block-status' has no counterpart"),
        ('event = "none"', 'event = "write_aio"', "inject-error.iotype: 'read' differs from the event 'write_aio'"),
        ('errno = "28"', 'errno = "0"', "inject-error.errno: '0' is no errno of Linux"),
        ('errno = "28"', 'errno = "x"', "inject-error.errno: 'x' is not allowed: write a whole number"),
        ('errno = "28"', 'erno = "28"', "file:15: inject-error.erno: unknown key (did you mean errno?)"),
        ('once = "on"', 'once = "maybe"', "inject-error.once: 'maybe' is not allowed: write on or off"),
        ('once = "on"', 'once = "on"\nonce = "on"', "file:17: inject-error.once: is there twice"),
        ('state = "3"\nerrno', 'state = "7"\nerrno', "inject-error.state: '7' is never entered: no transition leads to it"),
        ('state = "2"\nnew_state = "3"', 'state = "2"\nnew_state = "1"', "set-state.new_state: '1' is entered twice"),
        ('state = "2"\nnew_state', 'state = "1"\nnew_state', "set-state.state: '1' is left by two transitions"),
        ('state = "2"\nnew_state', "new_state", "set-state.state: is missing or 0: a transition from any state"),
        ('sector = "41000"', "sector 41000", "file:21: 'sector 41000' is no [SECTION], and no KEY"),
    ],
)
def test_a_rule_of_blkdebug_without_counterpart_is_refused(now: str, then: str, message: str) -> None:
    assert now in BLKDEBUG
    assert message in refused(import_blkdebug, BLKDEBUG.replace(now, then, 1))


def test_a_file_is_imported_by_the_name_of_its_format(tmp_path: Path) -> None:
    for name, source in (("lazyfs", LAZYFS), ("toxiproxy", proxy(toxic("timeout"))), ("blkdebug", BLKDEBUG)):
        path = tmp_path / name
        path.write_text(source)
        assert import_file(name, path).rules.fault
    assert set(FORMATS) == {"lazyfs", "toxiproxy", "blkdebug"}
    with pytest.raises(RigError) as caught:
        import_file("lazyfs", tmp_path / "none")
    assert caught.value.message == f"{tmp_path / 'none'}: the file cannot be read: No such file or directory"
