"""What all errors that a user can fix have in common."""


class UserError(ValueError):
    """A user's mistake. It says what is wrong, the value and the fix; scripts print it and no traceback."""
