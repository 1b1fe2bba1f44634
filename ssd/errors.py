"""The base class of errors that a user can fix, and text that is safe to show on a terminal."""

import re


def printable(text: str) -> str:
    """Replace control characters and characters that can't be encoded: names may contain anything."""
    return re.sub(r"[^\t\n -~\xa0-\ud7ff\ue000-\U0010ffff]", "�", text)


class UserError(ValueError):
    """A user's mistake: what is wrong, the value and the fix. Scripts print it without a traceback."""

    def __str__(self) -> str:
        return printable(super().__str__())


def require(holds: bool, key: str, value: object, fix: str) -> None:
    """Raise UserError("key=value: fix") unless the condition holds."""
    if not holds:
        raise UserError(f"{key}={'null' if value is None else value}: {fix}")
