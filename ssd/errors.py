"""What all errors that a user can mend have in common."""


class UserError(ValueError):
    """An error whose message says what is wrong, the value, and the mend: scripts print it, no traceback."""
