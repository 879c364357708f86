"""The text of a mail about alerts, as RFC 5322 and MIME have it.

Names of VMs and texts of events may have any character.  Other characters than printable ones are escaped, and headers are
encoded (RFC 2047), so no name makes a header or ends one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Any

from siterig.azure_emu.vault.alerts.alert_rules import INFRASTRUCTURE
from siterig.blockfs.core.clock import rfc3339
from siterig.blockfs.core.clock_reading import SECOND_NS
from siterig.blockfs.core.printable import printable

SUBJECT_CHARS_MAX = 200
TEXT_CHARS_MAX = 2000


@dataclass(frozen=True, slots=True)
class Alert:
    """An event as a mail has it; ``subject`` is its affected object."""

    at_ns: int
    code: str
    severity: str
    subject: str
    text: str

    def to_json(self) -> dict[str, Any]:
        """Return the form in the database."""
        return asdict(self)

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> Alert:
        """Return the alert of :meth:`to_json`."""
        return cls(**values)


@dataclass(frozen=True, slots=True)
class MailContent:
    """All that decides the text of a mail, so that a repetition is the same mail.

    Attributes:
        message_id: a UUID.
        topic: the topic of all alerts.
        alerts: the first of them, oldest first.
        count: the number of all.
        created_ns: wall time of the mail.
    """

    message_id: str
    topic: str
    alerts: list[Alert]
    count: int
    created_ns: int

    def encode(self, sender: str, receivers: Sequence[str]) -> bytes:
        """Return the mail with CRLF line ends, in ASCII."""
        mail = EmailMessage(policy=SMTP)
        mail["From"] = sender
        mail["To"] = ", ".join(receivers)
        mail["Subject"] = self.subject()
        mail["Date"] = format_datetime(datetime.fromtimestamp(self.created_ns // SECOND_NS, UTC))
        mail["Message-ID"] = f"<{self.message_id}@siterig.invalid>"
        mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no automatic answers
        mail.set_content(self.text(), cte="quoted-printable")
        mail["Content-Language"] = "en"
        return mail.as_bytes()

    def file_name(self) -> str:
        """Return the name of the mail's file, without its suffix: names in order of time."""
        moment = datetime.fromtimestamp(self.created_ns // SECOND_NS, UTC)
        return f"{moment:%Y%m%dT%H%M%SZ}-{self.message_id}"

    def subject(self) -> str:
        """Return the subject line, without characters that are not printable."""
        worst = next((each for each in self.alerts if each.severity == "Critical"), self.alerts[0])
        about = worst.code if self.topic == INFRASTRUCTURE else f"{worst.code} of {printable(worst.subject)}"
        more = "" if self.count == 1 else f" (alerts: {self.count})"
        text = f"[siterig] {worst.severity}: {printable(about)}".replace("=?", "= ?")  # not an encoded word of RFC 2047
        return text[: SUBJECT_CHARS_MAX - len(more)] + more

    def text(self) -> str:
        """Return the body."""
        lines: list[str] = []
        for each in self.alerts:
            lines.append(f"{rfc3339(each.at_ns)}  {each.severity}  {printable(each.code)}  {printable(each.subject)}")
            lines += [f"    {printable(each.text)[:TEXT_CHARS_MAX]}", ""]
        if self.count > len(self.alerts):
            lines += [f"Further alerts: {self.count - len(self.alerts)}.", ""]
        lines.append("siterig events shows all events, and siterig status the present state.")
        return "\n".join(lines) + "\n"
