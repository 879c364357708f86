"""The part of the vault's API for alerts: the receivers of mail, its delivery, and the RPO threshold."""

from __future__ import annotations

from typing import Literal, Protocol

from pydantic import Field

from siterig.blockfs.core.deadlines import ANSWER_S, deadline
from siterig.blockfs.core.wire_model import WireModel

Security = Literal["starttls", "tls", "none"]
RPO_THRESHOLD_S = 900.0
"""The default: 15 minutes, as in the service's failback policies."""
RPO_ABOVE = "RpoAboveThreshold"
"""The code of the reason and the events of a VM whose RPO is beyond the threshold."""


class MailServer(WireModel):
    """An SMTP server.

    Attributes:
        user: the user name; None: the server needs none.  The password is in a file of the rig's keys.
        ca_file: a PEM file with the authorities that the server's certificate may have; None: those of the host.
    """

    host: str
    port: int
    security: Security
    user: str | None = None
    ca_file: str | None = None


class AlertSettings(WireModel):
    """The alert settings of a vault.  The first three have the names of the service's ``replicationAlertSettings``.

    Attributes:
        sendToOwners: send mail to ``owners`` as well, who are the owners of the subscription in the service.
        customEmailAddresses: the other receivers.
        locale: the language of the receivers; the rig writes English only.
        owners: the addresses of the owners.
        sender: the address that mail is sent from; None: ``siterig@localhost``.
        folder: the folder that gets a file for each mail; None: no folder.
        server: the server that gets each mail; None: no server.  Without a folder and a server no mail is written.
        rpo_threshold_s: the RPO in seconds beyond which a VM has a warning and an event, at least two intervals.
    """

    sendToOwners: bool = False
    customEmailAddresses: list[str] = Field(default_factory=list)
    locale: str = "en-US"
    owners: list[str] = Field(default_factory=list)
    sender: str | None = None
    folder: str | None = None
    server: MailServer | None = None
    rpo_threshold_s: float = RPO_THRESHOLD_S

    @property
    def receivers(self) -> list[str]:
        """The addresses that get mail, each once."""
        owners = self.owners if self.sendToOwners else []
        return list(dict.fromkeys([*self.customEmailAddresses, *owners]))

    @property
    def is_on(self) -> bool:
        """True if alerts are mailed."""
        return bool(self.receivers) and (self.folder is not None or self.server is not None)


class AlertState(WireModel):
    """The settings, and the state of the queue of mails.

    Attributes:
        waiting: the number of mails that are not delivered yet.
        problem: why the newest attempt failed; None: it did not.
        problem_since: the time of the first failure in a row.
        delivered: the time of the newest delivery.
        dropped: the number of alerts without a mail, because the queue was full.
    """

    settings: AlertSettings
    waiting: int
    problem: str | None
    problem_since: str | None
    delivered: str | None
    dropped: int


class AlertApi(Protocol):
    """The operations on the alert settings."""

    @deadline(ANSWER_S)
    async def alerts(self) -> AlertState:
        """Return the alert settings and the state of the queue of mails."""
        ...

    @deadline(ANSWER_S)
    async def configure_alerts(self, *, settings: AlertSettings, password_file: str | None = None) -> AlertState:
        """Replace the alert settings; mails that wait are tried at once, or deleted if mail is switched off.

        Args:
            settings: the new settings.
            password_file: a file with the password of the server's user, which is copied; None: it stays as it is.
        Raises:
            RigError: ``InvalidAlertSettings``.
        """
        ...
