"""Scenario files: every wrong file is refused with file, line, key, value and what is allowed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from siterig.blockfs.core.errors import Code, RigError
from siterig.scenarios.files.scenario_files import find_scenario, parse_scenario, read_scenario

TEXT = """\
title = "t"
description = "d"
sentences = ["H8.2"]
[topology]
interval = "2s"
[[topology.vm]]
name = "web01"
[[topology.vm.disk]]
name = "data"
size = "16MiB"
filesystem = "ext4"
[[topology.vm.disk]]
name = "raw"
size = "1MiB"
[[workload]]
name = "ledger"
kind = "ledger"
vm = "web01"
disks = ["data"]
[[fault]]
name = "slow"
where = { layer = "disk", vm = "web01" }
what = { delay = "1ms" }
[[timeline]]
do = "lose-site"
when.item = { vm = "web01", state = "Protected" }
[[timeline]]
do = "check"
name = "the data"
workload = "ledger"
[[timeline]]
do = "mark"
mark = "m"
after = "fault:slow"
[expect]
item = [{ vm = "web01", points = ">=1" }]
retry = [{ vm = "web01", delays = ["1s"] }]
[proof]
skip = ["lose-site"]
"""

WRONG = {
    "an unknown key": ("interval =", "intervall =", "f.toml:5: topology.intervall: unknown key (did you mean interval?)"),
    "a wrong size": ('"16MiB"', '"16MB3"', "f.toml:10: topology.vm[1].disk[1].size: size '16MB3' is not understood"),
    "half a sector": ('"16MiB"', '"700B"', "f.toml:10: topology.vm[1].disk[1].size: 700 bytes is no size of a disk"),
    "two disks of a name": (
        'name = "raw"',
        'name = "data"',
        "f.toml:13: topology.vm[1].disk[2].name: 'data' is the name of disk[1], too",
    ),
    "a short interval": ('"2s"', '"1ms"', "f.toml:5: topology.interval: 1ms is too short: the least interval is 100ms"),
    "another kind": ('kind = "ledger"', 'kind = "leger"', "f.toml:17: workload[1].kind: 'leger' is not allowed (did you"),
    "a disk without a file system": ('["data"]', '["raw"]', "f.toml:19: workload[1].disks: there is no disk with a file"),
    "a key of another kind": ('["data"]', '["data"]\nrun = "x"', "f.toml:20: workload[1].run: is no key of ledger; allowed"),
    "another operation": (
        '"lose-site"\nwhen',
        '"loose-site"\nwhen',
        "f.toml:25: timeline[1].do: 'loose-site' is not allowed (did you mean lose-site?); allowed: wait, protect",
    ),
    "no operation": ('do = "check"\n', "", "f.toml:27: timeline[2].do: is missing; allowed: wait, protect"),
    "a missing argument": (
        'name = "the data"\nworkload = "ledger"',
        'name = "the data"',
        "f.toml:27: timeline[2].workload: is missing: check needs it",
    ),
    "a key of another operation": (
        'mark = "m"',
        'mark = "m"\nrole = "agent"',
        "f.toml:34: timeline[3].role: is no key of mark; allowed: mark, do, name",
    ),
    "an unknown workload": (
        'workload = "ledger"',
        'workload = "leger"',
        "f.toml:30: timeline[2].workload: there is no workload 'leger' (did you mean ledger?); there are: ledger",
    ),
    "an unknown VM in a condition": (
        '"web01", state',
        '"web02", state',
        "f.toml:26: timeline[1].when.item.vm: there is no VM 'web02' (did you mean web01?); there are: web01",
    ),
    "an unknown key of a condition": (
        "state = ",
        "sate = ",
        "f.toml:26: timeline[1].when.item.sate: unknown key (did you mean state?)",
    ),
    "an empty condition": (
        'when.item = { vm = "web01", state = "Protected" }',
        "when = {}",
        "f.toml:26: timeline[1].when: has no key; allowed: item, job",
    ),
    "an unknown fault": ('"fault:slow"', '"fault:slo"', "f.toml:34: timeline[3].after: there is no fault 'slo' (did you"),
    "an event that is a state": (
        '"fault:slow"',
        '"event:Protected"',
        "f.toml:34: timeline[3].after: 'event:Protected': the vault records no event 'Protected' (did you mean",
    ),
    "a wrong moment": ('"fault:slow"', '"event"', "f.toml:34: timeline[3].after: 'event' is no trigger"),
    "a wrong fault": ("delay", "dellay", "f.toml:23: fault[1].what.dellay: unknown key (did you mean delay?)"),
    "a wrong count": ('">=1"', '"1+"', "f.toml:36: expect.item[1].points: '1+' is not understood: write a number"),
    "a wrong delay": ('["1s"]', '["1x"]', "f.toml:37: expect.retry[1].delays[1]: duration '1x' is not understood"),
    "an unknown entry in the proof": (
        '["lose-site"]',
        '["lose"]',
        "f.toml:39: proof.skip[1]: there is no entry of the timeline 'lose' (did you mean lose-site?)",
    ),
    "no number of a sentence": (
        '"H8.2"',
        '"8.2"',
        "f.toml:3: sentences[1]: '8.2' is no number of a sentence",
    ),
    "no title": ('title = "t"\n', "", "f.toml: title: is missing"),
    "no TOML": ("[topology]", "[topology", "f.toml: this is no TOML:"),
}


def test_a_good_file_is_read() -> None:
    scenario = parse_scenario("f.toml", TEXT)
    assert [entry.label for entry in scenario.timeline] == ["lose-site", "the data", "mark m"]
    assert scenario.topology.interval_s("web01") == 2.0


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_refused_with_line_and_key(name: str) -> None:
    old, new, message = WRONG[name]
    assert TEXT.count(old) >= 1
    with pytest.raises(RigError) as refused:
        parse_scenario("f.toml", TEXT.replace(old, new, 1))
    assert refused.value.code == Code.InvalidScenario
    assert refused.value.message.startswith(message), refused.value.message


def test_a_wait_without_a_moment_is_refused() -> None:
    with pytest.raises(RigError, match=r"timeline\[4\]\.do: wait needs delay, at, after or when"):
        parse_scenario("f.toml", TEXT.replace("[expect]", '[[timeline]]\ndo = "wait"\n[expect]'))


def test_a_fault_in_words_is_a_rule(tmp_path: Path) -> None:
    text = TEXT.replace("[expect]", '[[timeline]]\ndo = "add-fault"\nrule = "disk web01/data write error=EIO"\n[expect]')
    rule = parse_scenario("f.toml", text).timeline[3].rule
    assert rule is not None
    assert rule.document()["what"] == {"error": "EIO"}
    with pytest.raises(RigError, match=r"timeline\[4\]\.rule: fault 'disk web01/data write eror=EIO'"):
        parse_scenario("f.toml", text.replace("error=EIO", "eror=EIO"))


def test_without_the_mechanism_faults_and_entries_are_left_out() -> None:
    scenario = parse_scenario("f.toml", TEXT)
    switched_off = scenario.without_mechanism()
    assert (switched_off.fault, [entry.label for entry in switched_off.timeline]) == ((), ["the data", "mark m"])
    armed = parse_scenario("f.toml", TEXT + "disarm = []\n").without_mechanism()
    assert [rule.label for rule in armed.fault] == ["slow"]
    other = '[[proof.instead]]\ndo = "wait"\nname = "the data"\nat = "1s"\n'
    instead = parse_scenario("f.toml", TEXT + other).without_mechanism()
    assert [entry.do for entry in instead.timeline] == ["wait", "mark"]


def test_a_name_is_of_the_library_and_a_path_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(TEXT)
    assert find_scenario(str(path)) == read_scenario(path)
    assert find_scenario("site-lost-under-load").name == "site-lost-under-load"
    with pytest.raises(RigError, match="no scenario 'site-lost-under-lod'") as unknown:
        find_scenario("site-lost-under-lod")
    assert unknown.value.code == Code.NoSuchScenario
    with pytest.raises(RigError, match="the file cannot be read") as missing:
        find_scenario(str(tmp_path / "none.toml"))
    assert missing.value.code == Code.InvalidScenario


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_only_a_regular_file_is_read(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "some.toml")
    with pytest.raises(RigError, match="the file cannot be read: it is no regular file") as refused:
        read_scenario(tmp_path / "some.toml")
    assert refused.value.code == Code.InvalidScenario
