"""The tables of a fault rule: where, when, what and expect, each a model with the values that it takes.

:mod:`siterig.scenarios.faults.fitting` checks that the tables of one rule fit together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from siterig.blockfs.core.fault_decisions import SEED_MAX, Distribution
from siterig.blockfs.documents.model_problems import misfit
from siterig.scenarios.faults.catalog import LayerName
from siterig.scenarios.faults.values import (
    STATUS_CODES,
    ByteShift,
    Count,
    CountFrom1,
    Counts,
    Drift,
    Duration,
    Errno,
    Fired,
    FiredRange,
    Names,
    Rate,
    SignalName,
    Size,
    Sizes,
    Survivors,
    Text,
    TimeShift,
    Trigger,
)

FaultStream = Literal["upstream", "downstream", "both"]
ConnectionFault = Literal["reset", "refuse", "black-hole", "slow-close", "half-open"]
AccountFault = Literal["key-rotated", "container-deleted", "account-deleted"]
PowerFault = Literal["loss", "reboot", "off"]
KEPT_PART_MAX = 64
"""The last part of a torn write that a rule can name: the C core has a mask of 64 bits."""
Seed = Annotated[Count, Field(le=SEED_MAX)]


class FaultModel(BaseModel):
    """Base of all tables of a rule: unknown keys are errors, and a rule does not change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, serialize_by_alias=True, validate_by_name=True, validate_by_alias=True, defer_build=True
    )


# --- where ---------------------------------------------------------------------------------------------------------


class FaultPlace(FaultModel):
    """The place of a fault; a key that is left out matches everything."""

    layer: LayerName = Field(description="the layer that the fault is in")
    vm: Text | None = Field(default=None, description="pattern of VM names")
    disk: Text | None = Field(default=None, description="pattern of disk names")
    part: Text | None = Field(default=None, description="which file of a change log or a managed disk")
    host: Literal["site", "azure"] | None = Field(default=None, description="the host: `site` or `azure`")
    role: Text | None = Field(default=None, description="pattern of role names; on links and the blob service: the client")
    link: Text | None = Field(default=None, description="pattern of link names, CLIENT-SERVER like `agent-vault`")
    stream: FaultStream | None = Field(
        default=None,
        description="direction: `upstream` is client to server, `downstream` server to client, `both` is the default",
    )
    blob: Text | None = Field(default=None, description="pattern of CONTAINER/BLOB")
    op: Names | None = Field(default=None, description="one operation or a list")
    start: Size | None = Field(default=None, description="first byte of the range")
    length: Size | None = Field(default=None, description="bytes of the range; to the end if left out")
    file: Text | None = Field(
        default=None,
        description="pattern of a file in the guest's file system (ext4, XFS), mapped to ranges when the rule is armed",
    )


# --- when ----------------------------------------------------------------------------------------------------------


class FaultMoment(FaultModel):
    """The moments of a fault; without any key every matching operation meets it."""

    after: Trigger | None = Field(default=None, description="the rule begins to count after this moment")
    until: Trigger | None = Field(default=None, description="the rule ends at this moment")
    for_: Duration | None = Field(default=None, alias="for", description="the rule ends this long after it began to count")
    occurrence: CountFrom1 | None = Field(
        default=None, description="only the Nth matching operation; with `every`: the first one that counts"
    )
    every: CountFrom1 | None = Field(default=None, description="every Nth matching operation")
    probability: Annotated[float, Field(ge=0, le=1)] | None = Field(default=None, description="chance of each, from 0 to 1")
    times: CountFrom1 | None = Field(default=None, description="at most so many faults")
    while_file: Text | None = Field(default=None, description="only while this file exists on the host")
    timing: Literal["before", "after"] = Field(
        default="before", description="before the operation takes effect, or after it"
    )

    @field_validator("probability", mode="before")
    @classmethod
    def _no_truth(cls, value: object) -> object:
        if isinstance(value, bool):
            raise ValueError(f"{value} is not a number: write a number from 0 to 1")  # noqa: TRY004 (pydantic expects it)
        return value


# --- what ----------------------------------------------------------------------------------------------------------


def _table(value: object) -> object:
    """Take ``true`` for a table without keys, as the command line writes it."""
    return {} if value is True or value == "true" else value


class HttpError(FaultModel):
    """The answer of the blob service in place of a request's."""

    status: Annotated[CountFrom1, Field(ge=300, le=599)] = Field(description="HTTP status, 300 to 599")
    code: Text | None = Field(default=None, description="storage error code; the usual one of the status if left out")
    retry_after: Count | None = Field(default=None, description="seconds in the header Retry-After; no header if left out")

    def error_code(self) -> str:
        """Return the storage error code that the answer has."""
        return self.code or STATUS_CODES.get(self.status) or STATUS_CODES[500 if self.status >= 500 else 400]


class TornWrite(FaultModel):
    """The parts of a write, and those that reach the disk; random ones, by the seed, if ``keep`` is left out."""

    parts: Annotated[CountFrom1, Field(ge=2, le=4096)] | None = Field(default=None, description="number of equal parts")
    sizes: Sizes | None = Field(default=None, description="sizes of the parts, in place of `parts`")
    keep: Counts | None = Field(default=None, description="numbers of the parts that are kept, from 1")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.parts is not None and self.sizes is not None:
            raise misfit((("sizes",), "stands beside parts: write one of them"))
        if self.sizes is not None and (not 2 <= len(self.sizes) <= KEPT_PART_MAX or 0 in self.sizes):
            raise misfit((("sizes",), f"must have 2 to {KEPT_PART_MAX} parts of at least one byte"))
        count = len(self.sizes) if self.sizes is not None else self.parts
        if self.keep and count is None:
            raise misfit((("keep",), "needs parts or sizes"))
        if self.keep and count is not None and max(self.keep) > min(count, KEPT_PART_MAX):
            raise misfit((("keep",), f"part {max(self.keep)} cannot be kept; allowed: 1 to {min(count, KEPT_PART_MAX)}"))
        return self


class BitFlip(FaultModel):
    """Bits that are inverted, at places that the seed chooses."""

    bits: Annotated[CountFrom1, Field(le=4096)] = Field(default=1, description="number of bits in each operation")


def _error_tag(value: object) -> str:
    return "<http>" if isinstance(value, Mapping | HttpError) else "<errno>"


def _error(value: object) -> object:
    """Take a bare number for a status: ``error=503``."""
    if isinstance(value, int) and not isinstance(value, bool):
        return {"status": value}
    return {"status": int(value)} if isinstance(value, str) and value.isdecimal() else value


ErrorValue = Annotated[
    Annotated[Errno, Tag("<errno>")] | Annotated[HttpError, Tag("<http>")],
    Discriminator(_error_tag),
    BeforeValidator(_error),
]


class FaultEffect(FaultModel):
    """The fault itself; the catalog says which keys a layer has, and which of them go together."""

    error: ErrorValue | None = Field(
        default=None, description="errno like `EIO`; on blobs a status, or `status`, `code`, `retry_after`"
    )
    delay: Duration | None = Field(
        default=None, description="time, like `40ms`; with another fault: time before it takes effect"
    )
    jitter: Duration | None = Field(default=None, description="time; more in `distribution`")
    distribution: Distribution | None = Field(
        default=None,
        description="`uniform` (default): delay plus or minus jitter; `normal`: jitter is the standard deviation; `pareto`: "
        "jitter is the mean of the addition, with a long tail",
    )
    rate: Rate | None = Field(default=None, description="size a second, like `2MiB/s`")
    iops: CountFrom1 | None = Field(default=None, description="number of operations a second")
    truncate: Size | None = Field(default=None, description="size that is done")
    tear: Annotated[TornWrite, BeforeValidator(_table)] | None = Field(
        default=None, description="`true`, or `parts` or `sizes`, and `keep`"
    )
    misdirect: ByteShift | None = Field(default=None, description="shift, like `+8KiB`")
    stale: Literal[True] | None = Field(default=None, description="`true`")
    flip: Annotated[BitFlip, BeforeValidator(_table)] | None = Field(
        default=None, description="`true` for one bit, or `bits`"
    )
    bad_sectors: Literal[True] | None = Field(default=None, description="`true`: all sectors of the range")
    lie: Literal[True] | None = Field(default=None, description="`true`")
    full_after: Size | None = Field(default=None, description="size that is still free")
    pause: Literal[True] | None = Field(default=None, description="`true`")
    lose: Literal["unflushed"] | None = Field(default=None, description="`unflushed`")
    crash: bool | None = Field(default=None, description="`true` or `false`")
    survive: Survivors | None = Field(
        default=None, description="numbers of writes, from 1 after the last flush, like `[1, 4]`; or `random`"
    )
    lost: Literal[True] | None = Field(default=None, description="`true`")
    broken_chain: Literal[True] | None = Field(default=None, description="`true`")
    connection: ConnectionFault | None = Field(
        default=None,
        description="`reset`, `refuse`, `black-hole` (nothing arrives, in the direction of `stream`), `slow-close`, "
        "`half-open` (one side is closed, the other does not learn of it)",
    )
    close_after: Duration | None = Field(default=None, description="time; at once if left out, never for `black-hole`")
    cut_after: Size | None = Field(default=None, description="size that passes")
    account: AccountFault | None = Field(default=None, description="`key-rotated`, `container-deleted` or `account-deleted`")
    kill: SignalName | None = Field(default=None, description="signal, like `SIGKILL`")
    files_max: CountFrom1 | None = Field(default=None, description="number of open files")
    memory_max: Size | None = Field(default=None, description="size of the address space")
    jump: TimeShift | None = Field(default=None, description="shift, like `+1h`")
    skew: TimeShift | None = Field(default=None, description="shift, like `-30s`")
    drift: Drift | None = Field(default=None, description="part of the time, like `+200ppm` or `-1%`")
    power: PowerFault | None = Field(default=None, description="`loss`, `reboot` or `off`")
    delete: Literal[True] | None = Field(default=None, description="`true`")
    resize: Size | None = Field(default=None, description="new size")
    mark: Text | None = Field(default=None, description="name of the mark")

    @field_validator("stale", "bad_sectors", "lie", "pause", "lost", "broken_chain", "delete", mode="before")
    @classmethod
    def _only_true(cls, value: object) -> object:
        if value is not True and value != "true":
            raise ValueError(f"{value!r} is not true: leave the key out, or write true")
        return True

    def keys(self) -> tuple[str, ...]:
        """Return the keys that are set, in the order of the schema."""
        return tuple(name for name in type(self).model_fields if getattr(self, name) is not None)


# --- expect --------------------------------------------------------------------------------------------------------


class FaultExpectation(FaultModel):
    """The number of faults that a run must have, and whether all damage must be recoverable."""

    fired: Fired = Field(
        default=FiredRange(),
        description="`>=1` (default), a number, `==N`, `>=N`, `<=N`, `N..M` or `any`; else the run fails",
    )
    recoverable: bool = Field(
        default=False, description="`true`: a fault that would destroy the last intact copy of a block does not happen"
    )
