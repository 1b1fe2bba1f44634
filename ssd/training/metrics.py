"""metrics.jsonl: one json object a record, in the order of steps, also after a resume."""

import json
from pathlib import Path
from typing import Any


class MetricsFile:
    """Appends records to a run's metrics.jsonl, each on disk when `write` returns."""

    def __init__(self, path: Path, first_step: int) -> None:
        """Open the file to go on after `first_step` steps; records of later ones will come anew and are cut.

        A last line that a killed process left half written goes too.
        """
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                if not line.endswith("\n") or json.loads(line)["step"] > first_step:
                    break
                kept.append(line)
            temporary = path.with_name(path.name + ".tmp")
            temporary.write_text("".join(kept), encoding="utf-8")
            temporary.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Append one record."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
