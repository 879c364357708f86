"""The injectors of links and of the blob service of one rig, put together."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import partial

import structlog
import trio

from siterig.azure_emu.storage.azurite import CONTAINER, connection_string
from siterig.azure_emu.user_account.stored_account import is_stored, load, stamp_of
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.core.paths import Layout
from siterig.director.injectors import LayerInjector
from siterig.director.links.blob_injector import BLOB_LINKS, BlobInjector, BlobRules
from siterig.director.links.entries import LinkEntries
from siterig.director.links.link_injector import LinkInjector
from siterig.net.blob_proxy import BlobProxy, BlobService
from siterig.rpc.trust import storage_server_tls, storage_tls
from siterig.scenarios.faults.schedule import FaultSchedule

DELETION_S = 10.0
"""A stopped Azurite must not keep other changes of rules waiting for longer."""
_log = structlog.get_logger(__name__)


def link_injectors(layout: Layout, schedule: FaultSchedule, *, clock: Clock = SYSTEM_CLOCK) -> list[LayerInjector]:
    """Return the injectors of the layers ``link`` and ``blob``; both must run.

    Args:
        layout: the rig.
        schedule: decides about operations.
        clock: measures delays and rates.
    """
    entries = LinkEntries(layout, clock=clock)
    blobs = BlobInjector(schedule, entries, _ContainerDeletion(layout, clock).delete, clock=clock)
    for link in BLOB_LINKS:
        rules = BlobRules(blobs, link.partition("-")[0], partial(_shown_name, layout))
        entries.serve_blobs(link, _BlobLink(layout, rules, clock).serve)
    return [LinkInjector(schedule, entries, clock=clock), blobs]


def _shown_name(layout: Layout, container: str, blob: str) -> tuple[str, str]:
    """Return container and blob of a request as rules name them: as Azurite has them, also in the account of a user."""
    if not is_stored(layout.keys):
        return container, blob
    user = load(layout.keys)
    if container != user.secret.container:
        return container, blob
    return CONTAINER, blob.removeprefix(user.prefix)


class _BlobLink:
    """The proxy of the storage account for one client.

    Azurite's port is known only after its first start; of an account of a user, the trusted authorities can change.
    """

    def __init__(self, layout: Layout, rules: BlobRules, clock: Clock) -> None:
        self._layout, self._rules, self._clock = layout, rules, clock
        self._proxy: BlobProxy | None = None
        self._stamp: tuple[int, int, int] | None = None

    async def serve(self, stream: trio.SocketStream) -> None:
        stamp = stamp_of(self._layout.keys)
        if (self._proxy is None or stamp != self._stamp) and (service := self._service()) is not None:
            self._stamp = stamp
            tls = None if service.tls is None else storage_server_tls(self._layout, self._clock)
            self._proxy = BlobProxy(service, self._rules, tls=tls, clock=self._clock)
        if self._proxy is None:
            stream.socket.close()
        else:
            await self._proxy.serve(stream)

    def _service(self) -> BlobService | None:
        try:
            if is_stored(self._layout.keys):
                user = load(self._layout.keys)
                return BlobService.parse(user.secret.endpoint, tls=user.tls())
            fields = connection_string(self._layout.azurite, self._layout.keys).split(";")
        except RigError as error:
            _log.warning("blob_service_unknown", code=error.code, reason=error.message)
            return None
        url = next(field.partition("=")[2] for field in fields if field.startswith("BlobEndpoint="))
        return BlobService.parse(url, tls=storage_tls(self._layout, self._clock))


class _ContainerDeletion:
    """Deletes containers of the rig's storage account, past all proxies."""

    def __init__(self, layout: Layout, clock: Clock) -> None:
        self._layout, self._clock = layout, clock

    async def delete(self, pattern: str) -> list[str]:
        # The SDK takes longer to load than everything else here, and few rules need it.
        from siterig.accounts.rig_account import open_direct  # noqa: PLC0415

        if not fnmatchcase(CONTAINER, pattern):
            return []
        account = open_direct(self._layout, self._clock)
        try:
            with self._clock.real.move_on_after(DELETION_S) as limit:
                await account.delete_container()
        finally:
            account.close()
        if limit.cancelled_caught:
            raise RigError(
                Code.CacheUnreachable, f"the storage account did not answer within {DELETION_S:g} s", recoverable=True
            )
        return [CONTAINER]
