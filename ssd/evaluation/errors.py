"""The error of an evaluation that can't be done."""


class EvaluationError(ValueError):
    """Ground truth or detections that can't be scored; the message names the file, the entry and the mend."""
