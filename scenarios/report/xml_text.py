"""Text that XML 1.0 can hold."""

from __future__ import annotations

import re

_FORBIDDEN = re.compile("[^\\t\\n\\r\\u0020-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")


def xml_text(text: str) -> str:
    """Return a text with each character that XML 1.0 does not allow (section 2.2, ``Char``) as ``\\xNN``."""
    return _FORBIDDEN.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
