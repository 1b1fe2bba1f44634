"""Paths that a tool on Windows wrote with its own separator, which elsewhere is a letter like any other."""

import os


def hint_of_backslashes(path: str) -> str:
    """Return what to add to the news that there is no such file, where there is one with slashes."""
    meant = path.replace("\\", "/")
    if meant == path or not os.path.exists(meant):
        return ""
    return f", but {meant} is there: write / for \\ in its file_name"
