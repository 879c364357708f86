"""The tables ``[[timeline]]``: operations, each at a time, after a moment, or when a condition holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.documents.model_problems import misfit, problems_of
from siterig.scenarios.faults.moment_names import require_recorded
from siterig.scenarios.faults.rules import FaultRule, read_rule
from siterig.scenarios.faults.values import Count, CountFrom1, Duration, Size, Text, TimeShift, Trigger
from siterig.scenarios.files.conditions import ScenarioCondition
from siterig.scenarios.files.keyed_tables import KeyedTable, table_problems
from siterig.scenarios.files.topology import ScenarioTable, TopologyDisk

OperationName = Literal[
    "wait", "protect", "unprotect", "take-point", "test-failover", "cleanup", "unplanned-failover", "planned-failover",
    "commit", "failback", "reprotect", "resync", "pause", "resume", "set-policy", "set-bandwidth",
    "pin-point", "unpin-point", "delete-point", "cancel-job", "acknowledge-error", "fence", "unfence",
    "set-names", "rotate-account-keys", "set-account", "set-app-script", "remove-disk", "add-disk",
    "create-vm", "delete-vm", "resize-disk", "shut-down",
    "start-workload", "stop-workload", "check", "lose-site", "restore-site", "kill-role", "restart-role", "stop-rig",
    "start-rig", "run", "mark", "add-fault", "remove-fault", "advance-clock", "jump-clock", "skew-clock",
]  # fmt: skip
OPERATION_NAMES: tuple[OperationName, ...] = get_args(OperationName)
OPERATIONS: Mapping[str, KeyedTable] = {
    "wait": KeyedTable("Waits for its moment only; the run fails if it does not come within the time limit."),
    "protect": KeyedTable(
        "Enables replication, and waits until the VM is protected and has a recovery point.",
        ("vm",),
        ("exclude", "seed_from"),
    ),
    "unprotect": KeyedTable("Disables replication.", ("vm",)),
    "take-point": KeyedTable("Takes a recovery point.", ("vm",), ("point", "app_consistent")),
    "test-failover": KeyedTable("Makes the VM `NAME-test` from a recovery point.", ("vm",), ("point",)),
    "cleanup": KeyedTable("Removes the VM of a test failover.", ("vm",)),
    "unplanned-failover": KeyedTable("Fails over without the site.", ("vm",), ("point",)),
    "planned-failover": KeyedTable("Shuts the VM down (workloads, mounts), sends the rest, and fails over.", ("vm",)),
    "commit": KeyedTable("Keeps the result of a failover or a failback.", ("vm",)),
    "failback": KeyedTable("Shuts the recovered VM down, and downloads its disks to the site.", ("vm",)),
    "reprotect": KeyedTable("Protects the VM again after its failback, and waits for a recovery point.", ("vm",)),
    "resync": KeyedTable("Compares both sides and sends the differences.", ("vm",)),
    "pause": KeyedTable("Pauses replication: no cycle runs, and none is missed.", ("vm",)),
    "resume": KeyedTable("Resumes replication of a paused VM.", ("vm",)),
    "set-policy": KeyedTable(
        "Changes the replication policy of a VM.", ("vm",), ("interval", "retention", "app_consistent_every")
    ),
    "set-bandwidth": KeyedTable("Limits the uploads of the site; without `rate` there is no limit.", (), ("rate", "hours")),
    "pin-point": KeyedTable("Pins a recovery point: retention keeps it.", ("vm", "point")),
    "unpin-point": KeyedTable("Ends that.", ("vm", "point")),
    "delete-point": KeyedTable("Deletes a recovery point.", ("vm", "point")),
    "cancel-job": KeyedTable("Cancels the job of a VM that is in progress.", ("vm",)),
    "acknowledge-error": KeyedTable("Acknowledges a health error of a VM.", ("vm", "error")),
    "fence": KeyedTable("Makes the disks of a VM at the site refuse all writes.", ("vm",)),
    "unfence": KeyedTable("Ends that.", ("vm",)),
    "set-names": KeyedTable(
        "Chooses the names of the VMs that failovers make; an empty name is the usual one.",
        ("vm",),
        ("recovery_name", "test_name"),
    ),
    "add-disk": KeyedTable("Replicates a disk that is not replicated; older recovery points lack it.", ("vm", "disk")),
    "remove-disk": KeyedTable("Ends the replication of a disk; older recovery points keep it.", ("vm", "disk")),
    "rotate-account-keys": KeyedTable("Replaces both keys of the storage account while replication continues."),
    "set-account": KeyedTable(
        "Gives the rig another secret of the storage account of the topology, as `siterig account set` does.", ("account",)
    ),
    "set-app-script": KeyedTable(
        "Sets the script that is called with `--pre` and `--post` for application-consistent points; without `script` "
        "there is none.",
        ("vm",),
        ("script",),
    ),
    "create-vm": KeyedTable("Creates a VM at the site.", ("vm", "disk_of_vm")),
    "delete-vm": KeyedTable("Deletes a VM of one side.", ("vm",), ("side",)),
    "resize-disk": KeyedTable("Grows a disk of the site.", ("vm", "disk", "size")),
    "shut-down": KeyedTable("Stops the workloads of a VM, unmounts and detaches its disks.", ("vm",)),
    "start-workload": KeyedTable(
        "Starts a workload; it continues after what is on the disks. `side = \"azure\"`: in the recovered VM.",
        ("workload",),
        ("side",),
    ),
    "stop-workload": KeyedTable("Stops a workload.", ("workload",)),
    "check": KeyedTable(
        "Recovers the disks of a VM as after a crash, and checks its file systems and the data of a workload.",
        ("workload",),
        ("of", "point"),
    ),
    "lose-site": KeyedTable("Kills all roles of the site with SIGKILL; they stay down. Mounts of its VMs are released."),
    "restore-site": KeyedTable("Starts the roles of the site again."),
    "kill-role": KeyedTable("Kills a role with SIGKILL; without `hold` it is started again.", ("role",), ("hold",)),
    "restart-role": KeyedTable("Starts a role that is held down or has failed.", ("role",)),
    "stop-rig": KeyedTable("Ends all roles and the supervisor, as `siterig down` does; workloads and mounts first."),
    "start-rig": KeyedTable("Starts the rig again."),
    "run": KeyedTable(
        "Runs a command of a shell. Variables: `SITERIG_DIR` the folder of the rig, `SITERIG` the command line of siterig, "
        "`SITERIG_SCRATCH` a folder for its own files.",
        ("run",),
        ("exit_status",),
    ),
    "mark": KeyedTable("Sets a mark; fault rules and entries can follow it.", ("mark",)),
    "add-fault": KeyedTable("Arms a fault rule: words, or a table as in `[[fault]]`.", ("rule",)),
    "remove-fault": KeyedTable("Removes a fault rule; operations that it keeps waiting continue.", ("fault",)),
    "advance-clock": KeyedTable("Moves wall time and elapsed time of all roles; sleepers wake in order.", ("by",)),
    "jump-clock": KeyedTable("Moves wall time of all roles only, like `+2h`.", ("shift",)),
    "skew-clock": KeyedTable("Moves wall time of one role only, like `-1h`.", ("role", "shift")),
}  # fmt: skip
"""The operations with their keys; docs/reference/scenario-files.md is drawn from it."""
COMMON_KEYS = ("do", "name", "delay", "at", "after", "when", "within", "background", "fails")


class TimelineEntry(ScenarioTable):
    """One entry of the timeline; the operation selects which keys it takes."""

    do: OperationName = Field(description="the operation")
    name: Text | None = Field(default=None, description="shown in place of the operation; `[proof]` refers to it")
    delay: Duration | None = Field(default=None, description="not before this time has passed since the entry before")
    at: Duration | None = Field(default=None, description="not before this time since the timeline began")
    after: Trigger | None = Field(
        default=None,
        description="not before this moment: `event:CODE[/VM]`, `mark:NAME`, `fault:NAME`, `position:N` or `time:T`",
    )
    when: ScenarioCondition | None = Field(default=None, description="not before this condition holds")
    within: Duration | None = Field(
        default=None, description="time limit of the wait, and of the operation after it; `60s` if left out"
    )
    background: bool = Field(
        default=False,
        description="`true`: the next entry does not wait for the end of this operation",
    )
    fails: Text | None = Field(default=None, description="pattern of the error code with which the operation must fail")
    vm: Text | None = Field(default=None, description="the VM")
    disk: Text | None = Field(default=None, description="the disk")
    exclude: tuple[Text, ...] | None = Field(default=None, description="names of disks that are not replicated")
    seed_from: tuple[Text, ...] | None = Field(
        default=None,
        description="images with which managed disks begin, each `IMAGE` or `DISK=IMAGE`; a relative path begins in the "
        "folder `SITERIG_SCRATCH`, where an operation `run` can make them",
    )
    disk_of_vm: tuple[TopologyDisk, ...] | None = Field(default=None, description="the disks of the new VM")
    size: Size | None = Field(default=None, description="the new size")
    side: Literal["site", "azure"] | None = Field(default=None, description="`site` (default) or `azure`")
    point: Text | None = Field(
        default=None, description="a recovery point: `Latest` (default), `LatestProcessed`, ..., or the name of one"
    )
    app_consistent: bool = Field(default=False, description="`true`: the file systems are frozen")
    interval: Duration | None = Field(default=None, description="the new replication interval")
    retention: CountFrom1 | None = Field(default=None, description="hours for which recovery points are kept from now on")
    app_consistent_every: Duration | None = Field(
        default=None, description="the new time between application-consistent points; `0s`: none"
    )
    rate: Size | None = Field(default=None, description="bytes a second, at least `64KiB`")
    hours: str | None = Field(
        default=None,
        pattern=r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$",
        description="hours of each day, in UTC, in which the limit holds, like `09:00-18:00`; all if left out",
    )
    recovery_name: str | None = Field(default=None, description="the name of the VM that a failover makes")
    test_name: str | None = Field(default=None, description="the name of the VM that a test failover makes")
    account: Text | None = Field(
        default=None,
        description="the new secret, never itself: a file of mode 0600, whose relative path begins in the folder "
        "`SITERIG_SCRATCH`, or `env:NAME`",
    )
    script: Text | None = Field(
        default=None, description="lines of a shell script; `$SITERIG_SCRATCH` is a folder for its files"
    )
    error: Text | None = Field(default=None, description="the code of the health error")
    workload: Text | None = Field(default=None, description="the workload")
    of: Literal["source", "test", "recovered"] | None = Field(
        default=None,
        description="the disks that are checked: `test` (default): those of a test failover, which is made and removed if "
        "there is none; `recovered`: of the VM that a failover made; `source`: of the VM at the site, which is shut down",
    )
    role: Text | None = Field(default=None, description="the role")
    hold: bool = Field(default=False, description="`true`: it stays down")
    run: Text | None = Field(default=None, description="the command")
    exit_status: Count = Field(default=0, description="the exit status that it must have; 0")
    mark: Text | None = Field(default=None, description="the mark")
    rule: FaultRule | None = Field(default=None, description="the fault rule")
    fault: Text | None = Field(default=None, description="the name of a fault rule")
    by: Duration | None = Field(default=None, description="time")
    shift: TimeShift | None = Field(default=None, description="signed time, like `+1h`")

    @model_validator(mode="before")
    @classmethod
    def _has_known_keys(cls, data: object) -> object:
        if isinstance(data, Mapping) and (problems := list(table_problems(data, "do", OPERATIONS, COMMON_KEYS))):
            raise misfit(*problems)
        return data

    @field_validator("rule", mode="before")
    @classmethod
    def _rule_in_words(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return read_rule(value)
        except RigError as error:
            raise ValueError(error.message) from None
        except ValidationError as error:
            raise misfit(*((problem.path, problem.text) for problem in problems_of(error, FaultRule))) from None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.do == "wait" and (self.delay, self.at, self.after, self.when) == (None, None, None, None):
            raise misfit((("do",), "wait needs delay, at, after or when"))
        if self.do == "wait" and (self.background or self.fails is not None):
            raise misfit((("background" if self.background else "fails",), "is no key of wait"))
        if self.after is not None and self.after.kind == "event":
            try:
                require_recorded(self.after.name)
            except ValueError as error:
                raise misfit((("after",), f"{error}; for states and tasks: when.item, when.job")) from None
        return self

    @property
    def label(self) -> str:
        """The name, or the operation with its object if it has none."""
        if self.name is not None:
            return self.name
        objects = (self.vm, self.workload, self.role, self.mark, self.fault)
        return " ".join([self.do, *(text for text in objects if text is not None)])
