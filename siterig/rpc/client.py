"""The calling side of :mod:`siterig.rpc.contract`."""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import httpx
import trio
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.printable import valid_unicode
from siterig.blockfs.core.waits import Waits
from siterig.blockfs.trust.peer import refusal_of
from siterig.rpc.contract import CALLS_PATH, Method, error_of, method_names
from siterig.rpc.ways import SocketWay, Way

T = TypeVar("T")

WAIT_REPORTED_S = 5.0
"""A wait for an answer is reported after this time."""
AGAIN_S = 120.0
"""The time for which a call is repeated while a role that it needs is away."""


class Guide(Protocol):
    """The behaviour of a process while a role does not answer its calls.  A command has a guide, the roles have none."""

    async def report_wait(self, role: str, vm: str | None) -> None:
        """Report that the role has not answered for ``WAIT_REPORTED_S``, and the reasons, until it is cancelled.

        ``vm`` is the VM that the call is about, if it is about one.
        """
        ...

    async def wait_until_back(self, role: str, error: RigError, *, again: bool) -> None:
        """Wait until a role that did not answer is back.

        Args:
            role: the role.
            error: the failure of the call.
            again: False if the call must not be repeated; the method always raises then.
        Raises:
            RigError: ``error``, or one that says more, if the role does not come back.
        """
        ...


WATCH: ContextVar[Waits | None] = ContextVar("WATCH", default=None)
"""The waits of this role: a call without a deadline is one while the link does not carry it."""
TLS_CALLS: ContextVar[Callable[[RigError | None], None] | None] = ContextVar("TLS_CALLS", default=None)
"""Gets the failure of each call over TLS in which one side refuses the certificate of the other; None for an answer."""
WATCH_EVERY_S = 10.0
"""The time between two questions about a call without a deadline; an answer must come within half of it."""
LOST_AFTER = 2
"""A call has been lost when the server does not know it so many times."""
GUIDE: ContextVar[Callable[[Path], Guide] | None] = ContextVar("GUIDE", default=None)
"""Makes the guide for a folder of sockets; with None calls fail at once, and no wait is reported."""


def _body(method: Method, arguments: dict[str, Any]) -> bytes:
    """Return the arguments as JSON.

    Raises:
        RigError: ``InvalidName`` for a name or path with bytes that are not UTF-8, which JSON cannot carry.
    """
    try:
        return method.arguments.dump_json(cast(Any, arguments), warnings="error")
    except PydanticSerializationError as error:
        for name, value in arguments.items():
            if (found := _not_utf8(value)) is not None:
                what = name if found == value else f"a text of {name}"
                message = f"{what} is {found!a}, with bytes that are not UTF-8: a rig cannot take such a name or path"
                raise RigError(Code.InvalidName, message) from error
        raise


def _not_utf8(value: object) -> str | None:
    """Return the first text in an argument that UTF-8 cannot carry."""
    if isinstance(value, str):
        return None if valid_unicode(value) == value else value
    if isinstance(value, BaseModel):
        value = list(value.model_dump().values())
    if isinstance(value, list | tuple):
        return next((found for each in value if (found := _not_utf8(each)) is not None), None)
    return None


class _Proxy:
    """Turns each attribute access into a remote method (:func:`proxy`)."""

    def __init__(self, protocol: type, way: Way, service: str, *, guided: bool, patient: bool, clock: Clock) -> None:
        self._guided, self._patient = guided, patient
        self._protocol = protocol
        self._clock = clock
        self._names = method_names(protocol)
        self._methods: dict[str, Method] = {}
        self._way = way
        self._service = service
        self._silent: set[str] = set()
        """Calls whose server did not answer the last question for them."""

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        if name not in self._names:
            raise AttributeError(f"{self._service} has no method {name!r}")
        if name not in self._methods:  # made when first called: a command needs one or two of many
            self._methods[name] = Method.of(self._protocol.__name__, getattr(self._protocol, name))
        method = self._methods[name]

        async def remote(**arguments: Any) -> Any:
            return await self._post(method, arguments)

        return remote

    async def _post(self, method: Method, arguments: dict[str, Any]) -> Any:
        body = _body(method, arguments)
        make_guide = GUIDE.get() if self._guided else None
        guide = None if make_guide is None else make_guide(self._way.sockets)
        deadline = self._clock.trio_time_s() + AGAIN_S
        while True:
            answer = await self._ask(method, body, guide, arguments.get("vm"))
            if isinstance(answer, httpx.Response) and answer.status_code == 200:
                self._note_refusal(None)
                return method.result.validate_json(answer.content)
            failure = error_of(answer.json()["error"]) if isinstance(answer, httpx.Response) else answer
            self._note_refusal(failure)
            if guide is None or failure.role is None or self._clock.trio_time_s() > deadline:
                raise failure
            # A method with a deadline changes nothing, so it can be called twice in any case.  If the answer is that another
            # role was away, the operation itself has already waited and retried.
            harmless = math.isfinite(method.deadline_s)
            answered = isinstance(answer, httpx.Response)
            await guide.wait_until_back(failure.role, failure, again=harmless or not (failure.uncertain or answered))

    def _note_refusal(self, failure: RigError | None) -> None:
        """Report a link as a wait of this role as long as one of its sides refuses the certificate of the other."""
        if self._way.tls_link is None:
            return
        note = TLS_CALLS.get()
        if note is not None and (failure is None or failure.code == Code.PeerRefused):
            note(failure)
        if (waits := WATCH.get()) is None:
            return
        if failure is not None and failure.code in (Code.PeerRefused, Code.HostNotRegistered):
            waits.set(f"link {self._way.tls_link}", failure.code, failure.message)
        elif failure is None or failure.code != Code.RoleUnavailable:  # it has answered
            waits.clear(f"link {self._way.tls_link}")

    async def _ask(self, method: Method, body: bytes, guide: Guide | None, vm: str | None) -> httpx.Response | RigError:
        """Call once; return the answer, or the failure if there is none."""
        limit_s = method.deadline_s
        watch = WATCH.get()
        is_watched = not math.isfinite(limit_s) and (watch is not None or not self._patient)
        call = str(uuid.uuid4()) if is_watched else None
        answer: httpx.Response | httpx.TransportError | RigError | None = None
        with self._clock.move_on_after(limit_s):
            async with trio.open_nursery() as nursery:
                if guide is not None:
                    nursery.start_soon(self._report_wait, guide, vm)
                if call is not None:
                    nursery.start_soon(self._watch, watch or Waits(), method, call, nursery.cancel_scope)
                try:
                    answer = await self._way.exchange(f"/{self._service}/{method.name}", body, call)
                except (httpx.TransportError, RigError) as error:
                    answer = error
                nursery.cancel_scope.cancel()
        if isinstance(answer, httpx.Response):
            return answer
        if isinstance(answer, RigError):
            raise answer
        if (refusal := refusal_of(answer)) is not None:
            message = f"no TLS with the {self._role}{self._by_link}: {refusal}"
            failure = RigError(Code.PeerRefused, message, recoverable=True)
            failure.__cause__ = answer
            return failure
        uncertain = not isinstance(answer, httpx.ConnectError)
        if answer is None and call is not None and call in self._silent:
            limit_s = LOST_AFTER * 1.5 * WATCH_EVERY_S
            message = f"the {self._role} did not answer for {limit_s:g} s{self._by_link}"
        elif answer is None and call is not None:
            message = f"the {self._role} no longer works on the call {method.name}: its answer is lost{self._by_link}"
        elif answer is None:
            message = f"the {self._role} did not answer within {limit_s:g} s{self._by_link}"
        else:
            message = (
                f"the {self._role} does not answer at {self._way.place}{self._by_link}: {answer or type(answer).__name__}"
            )
        failure = RigError(Code.RoleUnavailable, message, recoverable=True, role=self._role, uncertain=uncertain)
        failure.__cause__ = answer
        return failure

    async def _watch(self, waits: Waits, method: Method, call: str, scope: trio.CancelScope) -> None:
        """Ask for a call without a deadline: report a link that does not carry it, and end a call that was lost."""
        place, lost = f"call {call}", 0
        try:
            while lost < LOST_AFTER:
                await self._clock.sleep(WATCH_EVERY_S)
                is_known = await self._knows(call)
                if is_known is None and not self._patient:
                    self._silent.add(call)
                else:
                    self._silent.discard(call)
                lost = lost + 1 if is_known is False or call in self._silent else 0
                if is_known is None:
                    text = f"the {self._role} does not answer{self._by_link}, and the call {method.name} waits for it"
                    waits.set(place, Code.RoleUnavailable, text)
                else:
                    waits.clear(place)
        finally:
            waits.clear(place)
        scope.cancel()

    async def _knows(self, call: str) -> bool | None:
        """Return True if the server works on a call; None if it does not answer in time."""
        with self._clock.move_on_after(WATCH_EVERY_S / 2), suppress(httpx.TransportError, RigError):
            answer = await self._way.exchange(CALLS_PATH, call.encode())
            return bool(answer.json()["is_running"])
        return None

    @property
    def _role(self) -> str:
        return self._way.role

    @property
    def _by_link(self) -> str:
        """The link, for messages, if it may be the link that does not carry the answer."""
        link = self._way.link
        return f" over the link {link.stem}" if link is not None and os.path.lexists(link) else ""

    async def _report_wait(self, guide: Guide, vm: str | None) -> None:
        await self._clock.sleep(WAIT_REPORTED_S)
        await guide.report_wait(self._role, vm)


def proxy(
    protocol: type[T],
    way: Way | Path,
    *,
    link: Path | None = None,
    service: str | None = None,
    guided: bool = True,
    patient: bool = True,
    keeps: bool = False,
    clock: Clock = SYSTEM_CLOCK,
) -> T:
    """Return an object that implements ``protocol`` by calls to a role.

    A call ends at the deadline of its method, if it has one.  Cancelling a call cancels the work at the other side.  With a
    ``GUIDE`` a call waits for a role that the supervisor is restarting, unless the first call may have been done and a
    second one could do harm.

    Args:
        protocol: the contract.
        way: the way to the role, or its socket; the file name of a socket without ``.sock`` is the role's name.
        link: with a socket, that of the proxy between this client and the role; it is used while it exists and accepts
            connections.
        service: the name of the service there; the default is the name of the Protocol.
        guided: False to ignore the ``GUIDE``.
        patient: False to end a call without a deadline, too, when the server no longer answers.
        keeps: with a socket, True to keep connections for later calls.
        clock: the clock of deadlines and waits.
    Raises:
        RigError: by each call, ``RoleUnavailable`` (recoverable, with the role) if no process listens, the connection is
            lost or the deadline has passed.  It is ``uncertain`` unless it is certain that the call was not done.
            ``PeerRefused`` (recoverable) if one side of a link with TLS does not accept the certificate of the other.
    """
    chosen = SocketWay(way, link, keeps=keeps) if isinstance(way, Path) else way
    return cast(T, _Proxy(protocol, chosen, service or protocol.__name__, guided=guided, patient=patient, clock=clock))
