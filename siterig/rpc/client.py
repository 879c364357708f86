"""The calling side of :mod:`siterig.rpc.contract`."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import httpx
import trio
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.printable import valid_unicode
from siterig.rpc.contract import Method, error_of, method_names

T = TypeVar("T")

ANSWER_BYTES_MAX = 256 << 20
"""A list of a million recovery points; no role has a longer answer."""
WAIT_TOLD_S = 5.0
AGAIN_S = 120.0
"""For so long a call is repeated while a role that it needs is away."""


class Guide(Protocol):
    """A process's behaviour while a role does not answer its calls; a command has one, the roles have none."""

    async def tell(self, role: str) -> None:
        """An answer of the role is waited for since ``WAIT_TOLD_S``."""
        ...

    async def back(self, role: str, error: RigError, *, again: bool) -> None:
        """Wait until a role that could not be reached is back; ``error``, or a better one, if it does not come back.

        ``again`` False: the call must not be repeated, so this always raises.
        """
        ...


GUIDE: ContextVar[Callable[[Path], Guide] | None] = ContextVar("GUIDE", default=None)
"""Makes the guide for a folder of sockets; None: calls fail at once, and no wait is reported."""


def _body(method: Method, arguments: dict[str, Any]) -> bytes:
    """``InvalidName`` for a name or a path with bytes that are not UTF-8: JSON cannot carry it to a role."""
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
    """The first text in an argument that UTF-8 cannot carry."""
    if isinstance(value, str):
        return None if valid_unicode(value) == value else value
    if isinstance(value, BaseModel):
        value = list(value.model_dump().values())
    if isinstance(value, list | tuple):
        return next((found for each in value if (found := _not_utf8(each)) is not None), None)
    return None


class _Proxy:
    """KeyedLock attribute access into remote methods; see :func:`proxy`."""

    def __init__(self, protocol: type, socket: Path, service: str, deadlines: Mapping[str, float], *, guided: bool) -> None:
        self._guided = guided
        self._protocol = protocol
        self._deadlines = deadlines
        self._names = method_names(protocol)
        self._methods: dict[str, Method] = {}
        self._socket = socket
        self._service = service
        # A fresh connection for each call: connecting to a Unix socket costs microseconds, and one that is kept
        # could be closed by the server in the moment it is used again.
        limits = httpx.Limits(max_keepalive_connections=0, max_connections=None)
        transport = httpx.AsyncHTTPTransport(uds=str(socket), verify=False, limits=limits)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://rig", timeout=None, trust_env=False)  # noqa: S113

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
        guide = None if make_guide is None else make_guide(self._socket.parent)
        deadline = trio.current_time() + AGAIN_S
        while True:
            answer = await self._ask(method, body, guide)
            if isinstance(answer, httpx.Response) and answer.status_code == 200:
                return method.result.validate_json(answer.content)
            failure = error_of(answer.json()["error"]) if isinstance(answer, httpx.Response) else answer
            if guide is None or failure.role is None or trio.current_time() > deadline:
                raise failure
            # What a role answers out of what it has changes nothing: that may be asked a second time in any case.  An
            # answer that another role was away comes after the operation has done what it could about that.
            harmless = method.name in self._deadlines
            answered = isinstance(answer, httpx.Response)
            await guide.back(failure.role, failure, again=harmless or not (failure.uncertain or answered))

    async def _answer_to(self, path: str, body: bytes) -> httpx.Response:
        async with self._client.stream("POST", path, content=body) as answer:
            size_bytes = int(answer.headers.get("content-length", 0))  # which every answer of rpc_server has
            if size_bytes > ANSWER_BYTES_MAX:
                raise RigError(
                    Code.BadAnswer, f"the {self._role} answers with {size_bytes} bytes; at most {ANSWER_BYTES_MAX} are read"
                )
            await answer.aread()
            return answer

    async def _ask(self, method: Method, body: bytes, guide: Guide | None) -> httpx.Response | RigError:
        """Call once; the answer, or why there is none."""
        limit_s = self._deadlines.get(method.name, math.inf)
        answer: httpx.Response | httpx.TransportError | RigError | None = None
        with trio.move_on_after(limit_s):
            async with trio.open_nursery() as nursery:
                if guide is not None:
                    nursery.start_soon(self._tell_of_wait, guide)
                try:
                    answer = await self._answer_to(f"/{self._service}/{method.name}", body)
                except (httpx.TransportError, RigError) as error:
                    answer = error
                nursery.cancel_scope.cancel()
        if isinstance(answer, httpx.Response):
            return answer
        if isinstance(answer, RigError):
            raise answer
        uncertain = not isinstance(answer, httpx.ConnectError)
        if answer is None:
            message = f"the {self._role} did not answer within {limit_s:g} s"
        else:
            message = f"the {self._role} does not answer at {self._socket}: {answer or type(answer).__name__}"
        failure = RigError(Code.RoleUnavailable, message, recoverable=True, role=self._role, uncertain=uncertain)
        failure.__cause__ = answer
        return failure

    @property
    def _role(self) -> str:
        return self._socket.stem

    async def _tell_of_wait(self, guide: Guide) -> None:
        await trio.sleep(WAIT_TOLD_S)
        await guide.tell(self._role)


def proxy(
    protocol: type[T],
    socket: Path,
    *,
    service: str | None = None,
    deadlines: Mapping[str, float] | None = None,
    guided: bool = True,
) -> T:
    """An object that implements ``protocol`` by calling ``service`` (default: the Protocol's name) on ``socket``.

    A call may take as long as it takes, unless ``deadlines`` has seconds for its method; cancelling it cancels the work at
    the other side.  ``RoleUnavailable`` (recoverable, with the role) if nobody listens, or the connection is lost or the
    deadline has passed: then it is ``uncertain`` whether the call was done.  Where there is a ``GUIDE``, a role that the
    supervisor is about to have back is waited for instead, unless that is uncertain and a second call could do harm;
    ``guided`` False does without.
    """
    return cast(T, _Proxy(protocol, socket, service or protocol.__name__, deadlines or {}, guided=guided))
