"""Fault rules: one schema in three forms, and everything that is not possible is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, reject, settings
from pydantic import ValidationError

from siterig.blockfs.core.errors import RigError
from siterig.scenarios.faults import catalog
from siterig.scenarios.faults.catalog import EFFECTS, LAYERS
from siterig.scenarios.faults.rule_files import parse_rules, rules_text
from siterig.scenarios.faults.rules import FaultRule, FaultRules, read_rule
from siterig.scenarios.faults.schema import FaultEffect, FaultExpectation, FaultMoment, FaultPlace
from siterig.scenarios.faults.words import TABLE_OF
from tests.support.faults.rule_samples import raw_rules
from tests.support.repo.examples import examples

BEFORE_LOG = "the fault acts before the change log, so every copy gets the damage"
BEFORE_THE_LOG = ("write flip=true", "write tear=true", "misdirect=+4KiB", "flush lie=true", "lose=unflushed")


def allowed(raw: dict[str, Any]) -> FaultRule:
    try:
        return read_rule(raw)
    except RigError:
        reject()


SLOW = settings(max_examples=examples(150), suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])


@SLOW
@given(raw_rules())
def test_a_rule_in_words_is_the_same_rule(raw: dict[str, Any]) -> None:
    rule = allowed(raw)
    assert read_rule(rule.words()) == rule
    assert read_rule(rule.words()).words() == rule.words()


@SLOW
@given(raw_rules())
def test_a_rule_in_toml_is_the_same_rule(raw: dict[str, Any]) -> None:
    rule = allowed(raw)
    if rule.when.after is not None and rule.when.after.kind == "fault":
        reject()
    if rule.when.until is not None and rule.when.until.kind == "fault":
        reject()
    rules = FaultRules(seed=7, fault=(rule,))
    assert parse_rules("x.toml", rules_text(rules)) == rules
    assert read_rule(rule.document()) == rule


TABLE = """
disk read error=EIO
disk write error=EIO
disk flush error=EIO
disk discard error=EOPNOTSUPP
disk delay=40ms jitter=10ms distribution=normal
disk rate=2MiB/s iops=100
disk read truncate=512
disk write truncate=512
disk write tear.parts=4 tear.keep=1,3
disk write misdirect=+8KiB
disk read stale=true
disk read flip.bits=1
disk write flip=true
disk bad_sectors=true start=1MiB length=64KiB
disk flush lie=true
disk full_after=1GiB
disk pause=true
disk lose=unflushed
disk lose=unflushed tear=true
disk lose=unflushed survive=1,4
disk lose=unflushed survive=random crash=false
disk web01/data write file='/var/lib/pg/pg_wal/*' error=EIO
log web01/data append error=EIO
log web01 full_after=0B
log append tear=true
log read flip=true
log part=segment lost=true
log open part=snapshot error=EIO
log broken_chain=true
log append tear=true kill=SIGKILL
store web01/os write error=ENOSPC
store write tear=true
store full_after=1MiB
store read flip.bits=8
store part=journal lost=true
store part=checkpoint lost=true
store broken_chain=true
store sync kill=SIGKILL
link agent-vault delay=200ms jitter=50ms
link agent-vault rate=1MiB/s
link connection=reset
link connection=black-hole
link connection=black-hole stream=upstream
link connection=slow-close close_after=1s
link connection=half-open
link cut_after=64KiB
blob error=500
blob 'cache/*.part' PutBlob error.status=503 error.code=ServerBusy error.retry_after=7
blob PutBlob error=503 times=3
blob GetBlob connection=black-hole
blob GetBlob truncate=512
blob GetBlob flip.bits=1
blob PutBlock,PutBlob lost=true
blob delay=2s
blob rate=100KiB/s
blob account=key-rotated
blob account=container-deleted
blob account=account-deleted
process agent kill=SIGKILL
process agent pause=true for=20s
process agent start delay=30s
process agent files_max=64
process agent memory_max=256MiB
clock jump=+1h
clock drift=+200ppm
clock agent skew=+5m
machine azure power=off survive=random
machine site power=loss
machine site power=loss tear=true
machine site power=reboot
machine site power=off
machine vm=web01 delete=true
machine vm=web01 disk=data resize=2GiB
""".strip().splitlines()
"""Every fault of every layer, at least once."""


@pytest.mark.parametrize("line", TABLE)
def test_every_fault_can_be_written(line: str) -> None:
    rule = read_rule(line)
    assert read_rule(rule.document()) == rule


def test_the_lines_have_every_fault_of_every_layer() -> None:
    written = {(rule.where.layer, key) for rule in map(read_rule, TABLE) for key in rule.what.keys()}  # noqa: SIM118
    known = {(layer, key) for key, kind in EFFECTS.items() for layer in kind.about}
    without = {"mark", "crash", "jitter", "distribution", "close_after"}
    assert {pair for pair in known - written if pair[1] not in without} == set()


def test_the_catalog_has_the_keys_of_the_schema() -> None:
    keys = {
        table: [field.alias or name for name, field in model.model_fields.items()]
        for table, model in (
            ("where", FaultPlace),
            ("when", FaultMoment),
            ("what", FaultEffect),
            ("expect", FaultExpectation),
        )
    }
    assert sorted(keys["where"]) == sorted(("layer", *catalog.ALL_PLACES))
    assert keys["when"] == list(catalog.WHEN_KEYS)
    assert keys["what"] == list(EFFECTS)
    assert keys["expect"] == list(catalog.EXPECT_KEYS)
    assert len(TABLE_OF) == sum(map(len, keys.values())), "a key is in two tables"


def test_the_catalog_names_everything_that_the_schema_has() -> None:
    for key, kind in EFFECTS.items():
        assert {*kind.operations, *kind.immediate} <= set(kind.about), key
        assert {*kind.needs, *kind.joins} <= {*EFFECTS, "*"}, key
        for layer, operations in kind.operations.items():
            assert set(operations) <= set(LAYERS[layer].operations), key


def test_a_rule_can_be_built_of_its_models() -> None:
    built = FaultRule(
        where=FaultPlace(layer="disk", vm="web01", op=("write",)),
        when=FaultMoment(times=3),
        what=FaultEffect(error="EIO"),
    )
    assert built == read_rule("disk web01 write error=EIO times=3")
    with pytest.raises(ValidationError):
        FaultRule(where=FaultPlace(layer="link"), what=FaultEffect(error="EIO"))


def message(rule: dict[str, Any] | str) -> str:
    with pytest.raises(RigError) as caught:
        read_rule(rule)
    assert caught.value.code == "InvalidFault"
    return caught.value.message


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("", "there is no word: write LAYER [TARGET] [OPERATION] [KEY=VALUE ...]; layers: disk, log, store"),
        ("dsk error=EIO", "'dsk' is no layer (did you mean disk?)"),
        ("disk web01 data write error=EIO", "'write' is one word too many"),
        ("disk error=EIO write", "'write' stands after a KEY=VALUE"),
        ("disk write error=EIO write", "'write' stands after a KEY=VALUE"),
        ("disk write error=EIO =3", "'': unknown key; allowed: name, seed"),
        ("disk 'web01 error=EIO", "no closing quotation"),
        (
            "disk web01 wirte error=EIO",
            "where.op: 'wirte' is no operation of disk (did you mean write?); allowed: read, write",
        ),
        ("disk eror=EIO", "eror: unknown key (did you mean error?); allowed: name, seed, vm, disk"),
        ("disk error=EI0", "what.error: 'EI0' is no errno (did you mean EIO?): write a name like EIO or ENOSPC"),
        ("disk error=EIO error=EIO", "error: is there twice"),
        ("disk error=503", "what.error: an HTTP status is for the layer blob; on disk write an errno like EIO"),
        ("blob error=EIO", "what.error: 'EIO' is an errno; on blob write a status like 503"),
        ("blob error=200", "what.error.status: 200 is not allowed: input should be greater than or equal to 300"),
        ("blob error=503 error.retry=7", "what.error.retry: unknown key (did you mean retry_after?); allowed: status, code"),
        ("link iops=3", "what.iops: the layer link does not have it; allowed: delay, jitter, distribution, rate"),
        ("link vm=web01 delay=3s", "where.vm: the layer link does not have it; allowed: layer, link, role, stream, op"),
        ("disk flush misdirect=+8KiB", "where.op: 'flush' does not meet misdirect; allowed: read, write"),
        ("disk flush lie=true error=EIO", "what.lie: stands beside error: write two rules"),
        ("disk jitter=3ms", "what.jitter: needs delay in the same rule"),
        ("disk write", "what: has no fault; allowed: error, delay, rate"),
        ("disk pause=true times=2", "when.times: there is nothing to count: the fault happens once"),
        ("disk pause=true timing=after", "when.timing: 'after' needs an operation; name an operation in where.op"),
        (
            "disk write tear=true timing=after",
            "when.timing: 'after' is not possible for tear; it is for: error, pause, lose",
        ),
        ("disk error=EIO occurrence=3 times=2", "when.times: is more than one: occurrence alone means one operation"),
        ("disk error=EIO times=2 fired=3", "expect.fired: '==3' cannot be reached: the rule fires at most 2"),
        ("disk pause=true fired=2", "expect.fired: '==2' cannot be reached: the rule fires at most once"),
        ("disk error=EIO probability=0", "when.probability: is 0: the rule never fires"),
        (
            "disk error=EIO probability=1.5",
            "when.probability: '1.5' is not allowed: input should be less than or equal to 1",
        ),
        ("disk error=EIO every=0", "when.every: '0' is not allowed: input should be greater than or equal to 1"),
        ("disk error=EIO every=x", "when.every: 'x' is not understood: write a whole number"),
        ("disk error=EIO for=3", "when.for: duration '3' is not understood: write a number and ns, us"),
        ("disk error=EIO after=evnt:x", "when.after: 'evnt:x' is no trigger (did you mean event?): write event:NAME"),
        (
            "disk error=EIO after=event:Protectd/web01",
            "when.after: 'event:Protectd/web01': a rig has no event 'Protectd' (did you mean Protected?); allowed: a job or",
        ),
        ("disk error=EIO until=event:*Faild/web01", "when.until: 'event:*Faild/web01': a rig has no event '*Faild'"),
        ("disk error=EIO after=position:x", "when.after: 'position:x': the position 'x' is no whole number"),
        ("disk error=EIO after=mark:a until=mark:a", "when.until: 'mark:a' is the same moment as after"),
        ("disk error=EIO name=a after=fault:a", "when.after: 'a' is the rule itself"),
        ("disk error=EIO fired=lots", "expect.fired: 'lots' is not understood: write a number, ==N, >=N, <=N, N..M or any"),
        ("disk error=EIO fired=5..2", "expect.fired: '5..2' has no number in it"),
        (
            "disk error=EIO recoverable=true",
            "expect.recoverable: error destroys no bytes; it is for: misdirect, flip, bad_sectors",
        ),
        *((f"disk {fault} recoverable=true", f"expect.recoverable: true: {BEFORE_LOG}") for fault in BEFORE_THE_LOG),
        ("log lost=true recoverable=true", "expect.recoverable: true: the fault takes blocks of every region"),
        ("log rotate broken_chain=true recoverable=true", "allowed on log: flip or tear with op = append"),
        ("log flip=true recoverable=true", "expect.recoverable: true: it is not known which blocks the inverted bits"),
        ("log append part=snapshot flip=true recoverable=true", "the blocks are known of records in segments alone"),
        ("store write part=metadata flip=true recoverable=true", "a file of metadata belongs to all blocks of its disk"),
        (
            "store write broken_chain=true recoverable=true",
            "expect.recoverable: true: the fault takes blocks of every region",
        ),
        ("store part=base flip=true recoverable=true", "allowed on store: flip or tear with op = write, part = checkpoint"),
        ("machine site power=loss recoverable=true", "lost writes are taken back by writes that the change log records"),
        ("machine vm=web01 delete=true recoverable=true", "the disks of the VM at the site are deleted"),
        ("link agent-vault delay=1s recoverable=true", "delay destroys no bytes; it is for: other layers"),
        ("disk file=pg_wal error=EIO", "where.file: 'pg_wal' does not begin with /"),
        ("disk file=/a start=0 error=EIO", "where.file: stands beside start or length"),
        ("disk length=0 error=EIO", "where.length: is 0"),
        (
            "log part=sgement lost=true",
            "where.part: 'sgement' is unknown (did you mean segment?); allowed: segment, dirty-bitmap",
        ),
        ("disk write tear.parts=2 tear.keep=3", "what.tear.keep: part 3 cannot be kept; allowed: 1 to 2"),
        ("disk write tear.parts=2 tear.sizes=1,2", "what.tear.sizes: stands beside parts: write one of them"),
        ("disk read stale=no", "what.stale: 'no' is not true: leave the key out, or write true"),
        ("process agent kill=SIGKILLL", "what.kill: 'SIGKILLL' is no signal that ends a process (did you mean SIGKILL?)"),
        ("process agent kill=SIGSTOP", "what.kill: 'SIGSTOP' is no signal that ends a process"),
        ("clock agent start jump=+1h", "the layer clock has no operations, so 'start' is wrong"),
        ("clock jump=1h", "what.jump: shift '1h' has no sign: write it like +1h or -30s"),
        ("machine delete=true", "where.vm: is missing: a fault that deletes a VM names it"),
        ("machine vm=web01 resize=1GiB", "where.disk: is missing: a fault that grows a disk names VM and disk"),
        ("machine vm=a disk=b resize=513", "what.resize: 513 bytes are not allowed: write a multiple of 512"),
        ("machine hots=site power=loss", "hots: unknown key (did you mean host?)"),
        ("link close connection=refuse", "where.op: connection = refuse is a fault of connect; allowed: connect"),
        (
            "link connection=half-open close_after=1s",
            "what.close_after: is for connection = reset, black-hole or slow-close",
        ),
        ("disk name='a\tb' error=EIO", "name: 'a\\tb' has characters that cannot be printed"),
        ("disk seed=-1 error=EIO", "seed: '-1' is not allowed: input should be greater than or equal to 0"),
    ],
)
def test_an_impossible_rule_is_refused_with_key_value_and_choices(line: str, text: str) -> None:
    assert text in message(line)


@pytest.mark.parametrize(
    "line",
    [
        "disk bad_sectors=true",
        "disk read misdirect=+4KiB",
        "log append flip=true",
        "log append part=segment tear=true kill=SIGKILL",
        "store write flip=true",
        "store read,write part=base flip=true",
        "store write part=journal tear=true",
        "store write part=checkpoint flip=true",
        "store part=checkpoint lost=true",
        "store checkpoint lost=true",
        "blob lost=true",
        "blob PutBlob flip=true",
        "blob account=container-deleted",
    ],
)
def test_damage_that_leaves_a_copy_can_be_asked_for(line: str) -> None:
    assert read_rule(f"{line} recoverable=true").expect.recoverable


def test_a_mapping_names_unknown_tables_and_keys() -> None:
    assert "wher: unknown key (did you mean where?); allowed: name, seed, where, when" in message({"wher": {}})
    rule = {"where": {"layer": "disk"}, "what": {"error": "EIO"}, "when": {"occurance": 1}, "expect": {"fire": 1}}
    assert "when.occurance: unknown key (did you mean occurrence?)" in message(rule)
    assert "expect.fire: unknown key (did you mean fired?)" in message(rule)
    assert "where.layer: 'dsk' is not one of 'disk', 'log'" in message({"where": {"layer": "dsk"}, "what": {"error": "EIO"}})
    assert "when.times: True is not understood" in message(rule | {"when": {"times": True}, "expect": {}})


FILE = """\
seed = 4711

[[fault]]
name = "journal"
[fault.where]
layer = "disk"
op = ["write", "flush"]
[fault.what]
error = "EIO"

[[fault]]
where = { layer = "link", link = "agent-vault" }
what = { delay = "40ms" }
[fault.when]
after = "fault:journal"
"""


def file_message(text: str) -> str:
    with pytest.raises(RigError) as caught:
        parse_rules("f.toml", text)
    return caught.value.message


def test_a_file_has_a_seed_and_rules() -> None:
    rules = parse_rules("f.toml", FILE)
    assert rules.seed == 4711
    assert [rule.label for rule in rules.fault] == ["journal", "link agent-vault after=fault:journal delay=40ms"]


@pytest.mark.parametrize(
    ("now", "then", "text"),
    [
        ('error = "EIO"', 'eror = "EIO"', "f.toml:9: fault[1].what.eror: unknown key (did you mean error?)"),
        ('"40ms"', "40", "f.toml:13: fault[2].what.delay: 40 has no unit: write it as a text like 40ms"),
        (
            "fault:journal",
            "fault:jornal",
            "f.toml:15: fault[2].when.after: there is no rule 'jornal' (did you mean journal?)",
        ),
        ("seed = 4711", "sed = 4711", "f.toml:1: sed: unknown key (did you mean seed?); allowed: seed, fault"),
        ("seed = 4711", "seed = true", "f.toml:1: seed: True is not understood: write a whole number"),
        ('layer = "disk"', 'leyer = "disk"', "f.toml:5: fault[1].where.layer: is missing"),
        ("[[fault]]\nname", "[[fault]\nname", "f.toml: this is no TOML: "),
    ],
)
def test_an_error_in_a_file_names_file_line_and_key(now: str, then: str, text: str) -> None:
    assert FILE.count(now) == 1
    assert text in file_message(FILE.replace(now, then))


def test_two_rules_have_two_names() -> None:
    text = FILE.replace("where = {", 'name = "journal"\nwhere = {').replace("fault:journal", "time:1s")
    assert "f.toml:12: fault[2].name: 'journal' is the name of fault[1], too" in file_message(text)


def test_rules_that_wait_for_each_other_are_refused() -> None:
    first = FILE.replace("[fault.what]", '[fault.when]\nafter = "fault:second"\n[fault.what]')
    text = file_message(first.replace("where = {", 'name = "second"\nwhere = {'))
    assert "the rule waits for itself through 'second': it never fires" in text
