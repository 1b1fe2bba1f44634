"""SSD300: the detector and its trainer. ssd.load("runs/NAME").predict("a.jpg") finds objects."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .hub import load as load


def __getattr__(name: str) -> Any:
    """Import torch only when `load` is used: the processes that decode pictures don't need it."""
    if name == "load":
        from .hub import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
