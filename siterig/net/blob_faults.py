"""Faults of a blob service: the actions that the proxy can carry out, and the contract of the rules that choose them."""

from __future__ import annotations

import difflib
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Protocol

from siterig.blockfs.core.errors import Code, RigError
from siterig.net.blob_requests import ACKNOWLEDGED, OPERATIONS, BlobRequest
from siterig.net.pacing import Pacer

STORAGE_ERRORS = {
    "AccountIsDisabled": (403, "The specified account is disabled."),
    "AuthenticationFailed": (
        403,
        "Server failed to authenticate the request. Make sure the value of Authorization header is formed correctly "
        "including the signature.",
    ),
    "AuthorizationFailure": (403, "This request is not authorized to perform this operation."),
    "BlobAlreadyExists": (409, "The specified blob already exists."),
    "BlobNotFound": (404, "The specified blob does not exist."),
    "ConditionNotMet": (412, "The condition specified using HTTP conditional header(s) is not met."),
    "ContainerAlreadyExists": (409, "The specified container already exists."),
    "ContainerBeingDeleted": (409, "The specified container is being deleted. Try operation later."),
    "ContainerNotFound": (404, "The specified container does not exist."),
    "InsufficientAccountPermissions": (403, "The account being accessed does not have sufficient permissions."),
    "InternalError": (500, "The server encountered an internal error. Please retry the request."),
    "InvalidBlockList": (400, "The specified block list is invalid."),
    "LeaseIdMissing": (412, "There is currently a lease on the blob and no lease ID was specified in the request."),
    "Md5Mismatch": (
        400,
        "The MD5 value specified in the request did not match with the MD5 value calculated by the server.",
    ),
    "OperationTimedOut": (500, "Operation could not be completed within the specified time."),
    "OutOfCapacity": (507, "The account has no capacity left."),
    "RequestBodyTooLarge": (413, "The request body is too large and exceeds the maximum permissible limit."),
    "ResourceNotFound": (404, "The specified resource does not exist."),
    "ServerBusy": (503, "The server is busy."),
    "TooManyRequests": (429, "Too many requests were sent."),
}
"""Error codes of the storage service, with the status and message that they have there; any other code is allowed, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobAction:
    """An action of the proxy on one request; this one only delays it.

    Attributes:
        delay_s: time between the arrival of the headers and anything else.
        rule: name of the rule, for reports.
        before: work that must be done before the request is; it returns the action that takes the place of this one.
        context: anything that the rules need when they get the injection.
    """

    delay_s: float = 0.0
    rule: str = ""
    before: Callable[[], Awaitable[BlobAction]] | None = field(default=None, compare=False, repr=False)
    context: object = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RefuseRequest(BlobAction):
    """Answer with an error of the service.

    Attributes:
        is_carried_out: the service gets the request and carries it out; otherwise it never sees it.
        status: the HTTP status.
        code: the error code, for body and header.
        message: text for people.
        retry_after_s: value of the header ``Retry-After``; None for no such header.
    """

    status: int
    code: str
    message: str = ""
    retry_after_s: int | None = None
    is_carried_out: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LoseRequest(BlobAction):
    """Answer that the operation succeeded; the service never sees the request, so nothing is stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WithholdAnswer(BlobAction):
    """Do not answer.

    Attributes:
        is_carried_out: the service gets the request and carries it out; only its answer is lost.
        is_reset: reset the connection; otherwise it stays open until the client closes it.
    """

    is_carried_out: bool = False
    is_reset: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldTransfer(BlobAction):
    """Let nothing pass for a time: a black hole.

    Attributes:
        released: returns when the request may pass.
        is_carried_out: the service gets the request and carries it out; its answer is held.
        close_after_s: time after which the connection is reset; None for never.
    """

    released: Callable[[], Awaitable[None]]
    is_carried_out: bool = False
    close_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyDamage:
    """Damage of one body.

    Attributes:
        bytes_kept: the body ends after so many bytes; None for no end.
        is_hidden: of an answer: its ``Content-Length`` is changed, too, so the client cannot see that bytes are missing.
            Otherwise, and in requests, whose length is signed, the connection ends in the middle of the body.
        bits_flipped: number of bits that are flipped.
        offset: the byte of the first of them; None for random bits of the whole body.
        seed: chooses the random bits: the same seed and length give the same bits.
        choose: chooses the bits in place of the seed, for the length of a body in bytes.
        rule: name of the rule, if it is not that of the action.
    """

    bytes_kept: int | None = None
    is_hidden: bool = False
    bits_flipped: int = 0
    offset: int | None = None
    seed: int = 0
    choose: Callable[[int], list[int]] | None = None
    rule: str = ""

    def flips(self, body_bytes: int) -> dict[int, int]:
        """Return the masks to be XORed, by offset, for a body of that length."""
        if self.choose is not None:
            bits = self.choose(body_bytes)
        elif self.offset is not None:
            chosen = range(8 * self.offset, min(8 * self.offset + self.bits_flipped, 8 * body_bytes))
            bits = list(chosen)
        else:
            bits = random.Random(self.seed).sample(range(8 * body_bytes), min(self.bits_flipped, 8 * body_bytes))  # noqa: S311
        masks: dict[int, int] = {}
        for bit in bits:
            masks[bit // 8] = masks.get(bit // 8, 0) | 1 << bit % 8
        return masks


@dataclass(frozen=True, slots=True, kw_only=True)
class DistortTransfer(BlobAction):
    """Let the request and its answer pass, slowly or damaged.

    Attributes:
        rate_bytes_s: limit for each of both bodies, in bytes a second; None for no limit.
        pacers: limits of both bodies together with those of other requests, each with the name of its rule.
        request: damages of the request's body, one after the other.
        answer: damages of the answer's body.
    """

    rate_bytes_s: float | None = None
    pacers: tuple[tuple[str, Pacer], ...] = ()
    request: tuple[BodyDamage, ...] = ()
    answer: tuple[BodyDamage, ...] = ()


def storage_error(code: str, *, retry_after_s: int | None = None, rule: str = "") -> RefuseRequest:
    """Return the refusal with an error of the service, with the status and text that it has there.

    Raises:
        RigError: ``BadRequest`` if the code is not in :data:`STORAGE_ERRORS`; such a code needs a status.
    """
    if code not in STORAGE_ERRORS:
        raise RigError(Code.BadRequest, f"error code {code!r} of a blob service: its status is unknown{_nearest(code)}")
    status, message = STORAGE_ERRORS[code]
    return RefuseRequest(status=status, code=code, message=message, retry_after_s=retry_after_s, rule=rule)


def key_rotated(*, rule: str = "") -> RefuseRequest:
    """Return the answer to a request that is signed with a key that the account no longer has."""
    return storage_error("AuthenticationFailed", rule=rule)


def container_deleted(*, rule: str = "") -> RefuseRequest:
    """Return the answer to a request for a container that was deleted."""
    return storage_error("ContainerNotFound", rule=rule)


@dataclass(frozen=True, slots=True)
class BlobInjection:
    """An action that the proxy has carried out, with what it did in words (offsets and lengths included).

    ``rule`` is the rule of this effect.  ``is_nothing``: it had no effect, for the reason that ``effect`` says.
    """

    request: BlobRequest
    action: BlobAction
    effect: str
    rule: str = ""
    is_nothing: bool = False


class BlobFaults(Protocol):
    """The rules that choose the faults of one blob service."""

    def decide(self, request: BlobRequest) -> BlobAction | None:
        """Return the action for a request; None to let it pass.  Called once for each request, in their order."""

    def injected(self, injection: BlobInjection) -> None:
        """Note an action that was carried out.  It is called before the client can notice the action."""


@dataclass(slots=True)
class BlobRule:
    """An action with its selection and its counters.

    Attributes:
        action: the action.
        operations: names of operations; empty for all.
        blob: a pattern for ``CONTAINER/BLOB`` with ``*``, ``?`` and ``[...]``.
        times: the rule fires at most so often; None for no limit.
        matched: number of requests that were selected.
        fired: number of them that got the action.
    """

    action: BlobAction
    operations: frozenset[str] = frozenset()
    blob: str = "*"
    times: int | None = None
    matched: int = 0
    fired: int = 0

    def __post_init__(self) -> None:
        """Check the names of operations.

        Raises:
            RigError: ``BadRequest``.
        """
        for name in sorted(self.operations - OPERATIONS):
            raise RigError(Code.BadRequest, f"operation {name!r} of a blob service is unknown{_nearest(name, OPERATIONS)}")
        if isinstance(self.action, LoseRequest):
            for name in sorted((self.operations or OPERATIONS) - ACKNOWLEDGED.keys()):
                raise RigError(
                    Code.BadRequest,
                    f"operation {name!r} cannot be acknowledged and lost; allowed: {', '.join(sorted(ACKNOWLEDGED))}",
                )

    def selects(self, request: BlobRequest) -> bool:
        """Return True if the rule is for this request."""
        return (not self.operations or request.operation in self.operations) and fnmatchcase(request.path, self.blob)


@dataclass(slots=True)
class BlobFaultList(BlobFaults):
    """Rules in memory; the first one that selects a request, and may still fire, gets it."""

    rules: list[BlobRule] = field(default_factory=list)
    injections: list[BlobInjection] = field(default_factory=list)

    def decide(self, request: BlobRequest) -> BlobAction | None:
        chosen: BlobAction | None = None
        for rule in self.rules:
            if not rule.selects(request):
                continue
            rule.matched += 1
            if chosen is None and (rule.times is None or rule.fired < rule.times):
                rule.fired += 1
                chosen = rule.action
        return chosen

    def injected(self, injection: BlobInjection) -> None:
        self.injections.append(injection)


def _nearest(name: str, known: Iterable[str] = STORAGE_ERRORS) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return f"; the nearest known one is {close[0]!r}" if close else ""
