"""The error of a data set that cannot be used as it stands."""

from ssd.errors import UserError


class DatasetError(UserError):
    """What is wrong with a data set: the file, the entry in it, and what mends it."""
