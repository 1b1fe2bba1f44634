"""The embedded set: a few hundred drawn landscapes, made in seconds, to try the trainer on."""

from data.demo.folder import generate

__all__ = ["generate"]
