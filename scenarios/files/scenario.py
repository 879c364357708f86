"""A scenario: topology, workloads, timeline, fault rules and expectations, and the checks that they fit together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from siterig.blockfs.documents.model_problems import KeyPath, misfit
from siterig.blockfs.documents.nearest import hint
from siterig.scenarios.faults.rules import FaultRule, set_problems
from siterig.scenarios.faults.schema import Seed
from siterig.scenarios.faults.values import Duration, Names, Text
from siterig.scenarios.files.conditions import ScenarioCondition
from siterig.scenarios.files.expectations import ExpectTable, ProofTable
from siterig.scenarios.files.timeline_tables import TimelineEntry
from siterig.scenarios.files.topology import SECOND_NS, ScenarioTable, Topology
from siterig.scenarios.files.workload_tables import WorkloadTable

_SENTENCE = re.compile(r"[HV]\d{1,2}\.\d{1,2}")


def _sentence(text: str) -> str:
    if not _SENTENCE.fullmatch(text):
        raise ValueError(f"{text!r} is no number of a sentence: write it like H8.2")
    return text


Sentence = Annotated[str, AfterValidator(_sentence)]


class ScenarioDocument(ScenarioTable):
    """One scenario file."""

    title: Text = Field(description="one line")
    description: Annotated[str, Field(min_length=1, max_length=4000)] = Field(
        description="what happens and why, in Markdown; its page in the reference is made of it"
    )
    sentences: tuple[Sentence, ...] = Field(
        default=(), description="numbers of the sentences in [the table](asr-sentences.md) that it shows"
    )
    needs: Names | None = Field(default=None, description="programs without which it is skipped, like `initdb`")
    seed: Seed | None = Field(default=None, description="seed of all random choices; a printed random one if left out")
    time_limit: Duration = Field(default=300 * SECOND_NS, description="time limit of the whole run; `300s` if left out")
    topology: Topology = Topology()
    workload: tuple[WorkloadTable, ...] = Field(default=(), description="the workloads")
    fault: tuple[FaultRule, ...] = Field(
        default=(), description="[fault rules](fault-rules.md), armed before the workloads start"
    )
    timeline: tuple[TimelineEntry, ...] = Field(default=(), description="operations, in their order")
    expect: ExpectTable = ExpectTable()
    proof: ProofTable = ProofTable()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if problems := list(_problems(self)):
            raise misfit(*problems)
        return self

    def without_mechanism(self) -> ScenarioDocument:
        """Return the scenario with the mechanism that it tests switched off, as ``[proof]`` describes it."""
        instead = {entry.label: entry for entry in self.proof.instead}
        disarmed = {rule.label for rule in self.fault} if self.proof.disarm is None else set(self.proof.disarm)
        return self.model_copy(
            update={
                "fault": tuple(rule for rule in self.fault if rule.label not in disarmed),
                "timeline": tuple(
                    instead.get(entry.label, entry) for entry in self.timeline if entry.label not in self.proof.skip
                ),
            }
        )

    @property
    def fault_names(self) -> list[str]:
        """The names of all fault rules: those that are armed at the beginning, and those that an entry adds."""
        added = [entry.rule.label for entry in self.timeline if entry.rule is not None]
        return [*(rule.label for rule in self.fault), *added]

    @property
    def has_proof(self) -> bool:
        """True if something is switched off for the proof."""
        return self.without_mechanism() != self


def _problems(scenario: ScenarioDocument) -> Iterator[tuple[KeyPath, str]]:
    for problem in set_problems(scenario.fault):
        yield ("fault", *problem.path), problem.text
    yield from _name_problems("workload", [workload.name for workload in scenario.workload])
    known = _Known(scenario)
    for number, workload in enumerate(scenario.workload):
        path: KeyPath = ("workload", number)
        yield from known.vm((*path, "vm"), workload.vm)
        vm = scenario.topology.vm_of(workload.vm)
        if vm is not None:
            there = tuple(vm.filesystems())
            if not there:
                yield (*path, "vm"), f"VM {vm.name!r} has no disk with a file system, which a workload needs"
            for disk in workload.disks or ():
                if disk not in there:
                    yield (*path, "disks"), _unknown("disk with a file system", disk, there)
    for number, entry in enumerate(scenario.timeline):
        yield from known.entry(("timeline", number), entry)
    yield from known.expectations()
    yield from known.proof()


def _name_problems(table: str, names: list[str]) -> Iterator[tuple[KeyPath, str]]:
    for number, name in enumerate(names):
        if names.index(name) != number:
            yield (
                (table, number, "name"),
                f"{name!r} is the name of {table}[{names.index(name) + 1}], too",
            )


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    names = list(known)
    return f"there is no {kind} {name!r}{hint(name, names)}; there are: {', '.join(names) or 'none'}"


class _Known:
    """The names that a scenario defines, and the references to them that lead nowhere."""

    def __init__(self, scenario: ScenarioDocument) -> None:
        self._scenario = scenario
        added = [entry.vm for entry in scenario.timeline if entry.do == "create-vm" and entry.vm is not None]
        self._vms = [*(vm.name for vm in scenario.topology.vm), *added]
        self._workloads = [workload.name for workload in scenario.workload]
        self._faults = scenario.fault_names

    def vm(self, path: KeyPath, name: str | None) -> Iterator[tuple[KeyPath, str]]:
        if name is not None and name not in self._vms:
            yield path, _unknown("VM", name, self._vms)

    def workload(self, path: KeyPath, name: str | None) -> Iterator[tuple[KeyPath, str]]:
        if name is not None and name not in self._workloads:
            yield path, _unknown("workload", name, self._workloads)

    def fault(self, path: KeyPath, name: str | None) -> Iterator[tuple[KeyPath, str]]:
        if name is not None and name not in self._faults:
            yield path, _unknown("fault", name, self._faults)

    def entry(self, path: KeyPath, entry: TimelineEntry) -> Iterator[tuple[KeyPath, str]]:
        if entry.do != "delete-vm" or entry.side != "azure":
            yield from self.vm((*path, "vm"), entry.vm)
        if entry.do == "set-account" and self._scenario.topology.account is None:
            yield (*path, "do"), "set-account needs topology.account: the rig has Azurite"
        yield from self.workload((*path, "workload"), entry.workload)
        yield from self.fault((*path, "fault"), entry.fault)
        vm = None if entry.vm is None else self._scenario.topology.vm_of(entry.vm)
        if entry.disk is not None and vm is not None and entry.disk not in [disk.name for disk in vm.disk]:
            yield (*path, "disk"), _unknown("disk", entry.disk, [disk.name for disk in vm.disk])
        if entry.after is not None and entry.after.kind == "fault":
            yield from self.fault((*path, "after"), entry.after.name)
        if entry.when is not None:
            yield from self.condition((*path, "when"), entry.when)

    def condition(self, path: KeyPath, condition: ScenarioCondition) -> Iterator[tuple[KeyPath, str]]:
        if condition.item is not None:
            yield from self.vm((*path, "item", "vm"), condition.item.vm)
        if condition.workload is not None:
            yield from self.workload((*path, "workload", "name"), condition.workload.name)
        if condition.fault is not None:
            yield from self.fault((*path, "fault", "name"), condition.fault.name)
        if condition.disk is not None:
            yield from self.vm((*path, "disk", "vm"), condition.disk.vm)
        yield from self.vm((*path, "replicated"), condition.replicated)

    def expectations(self) -> Iterator[tuple[KeyPath, str]]:
        expect = self._scenario.expect
        for number, item in enumerate(expect.item):
            yield from self.vm(("expect", "item", number, "vm"), item.vm)
        for number, retry in enumerate(expect.retry):
            yield from self.vm(("expect", "retry", number, "vm"), retry.vm)
        for number, equal in enumerate(expect.equal):
            yield from self.vm(("expect", "equal", number, "vm"), equal.vm)
        for number, workload in enumerate(expect.workload):
            yield from self.workload(("expect", "workload", number, "name"), workload.name)
        for number, data in enumerate(expect.data):
            yield from self.workload(("expect", "data", number, "workload"), data.workload)
        for number, fault in enumerate(expect.fault):
            yield from self.fault(("expect", "fault", number, "name"), fault.name)

    def proof(self) -> Iterator[tuple[KeyPath, str]]:
        entries = [entry.label for entry in self._scenario.timeline]
        for number, name in enumerate(self._scenario.proof.skip):
            if name not in entries:
                yield ("proof", "skip", number), _unknown("entry of the timeline", name, entries)
        for number, entry in enumerate(self._scenario.proof.instead):
            if entry.label not in entries:
                yield ("proof", "instead", number, "name"), _unknown("entry of the timeline", entry.label, entries)
            yield from self.entry(("proof", "instead", number), entry)
        for name in self._scenario.proof.disarm or ():
            yield from self.fault(("proof", "disarm"), name)
