"""metrics.jsonl: one json object a record, in the order of steps, also after a resume."""

import json
from pathlib import Path
from typing import Any


class MetricsFile:
    """Appends records to a run's metrics.jsonl, each on disk when `write` returns."""

    def __init__(self, path: Path, first_step: int, cut_evaluation: bool = False) -> None:
        """Open the file to go on after `first_step` steps; records of later ones will come anew and are cut.

        cut_evaluation: that step's evaluation will come anew too. A last line that a killed process left half
        written goes as well.
        """
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                if not line.endswith("\n"):
                    break
                record = json.loads(line)
                if record["step"] > first_step or (
                    cut_evaluation and record["step"] == first_step and "AP" in record
                ):
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
