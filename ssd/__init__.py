"""SSD300: the detector and its training. ssd.load("runs/NAME").predict("a.jpg") finds objects."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .hub import load as load


def __getattr__(name: str) -> Any:
    """Import torch only where `load` is asked for: the processes that decode pictures do without."""
    if name == "load":
        from .hub import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
