"""The error of an evaluation that can't be done."""

from ssd.errors import UserError


class EvaluationError(UserError):
    """Ground truth or detections that can't be scored; the message names the file, the entry and the mend."""
