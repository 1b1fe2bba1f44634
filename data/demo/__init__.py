"""The embedded set: a few hundred drawn landscapes, made in seconds, for trying out the trainer."""

from data.demo.folder import generate

__all__ = ["generate"]
