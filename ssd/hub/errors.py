"""The hub's own error."""

from ..errors import UserError


class HubError(UserError):
    """What was asked of torch.hub can't be had; the message says why and what to pass instead."""
