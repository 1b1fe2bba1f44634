"""What a YOLO folder says of itself: data.yaml, or files of category names."""

from pathlib import Path

import msgspec

from data.convert.categories import CLASSES_FILE, check_names, read_names
from ssd.errors import UserError

NAMES_FILES = (CLASSES_FILE, "obj.names")
CONFIG_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")

Folders = str | list[str] | None


class Config(msgspec.Struct):
    """data.yaml: folders or list files of each split, and the category names by index."""

    path: str | None = None
    train: Folders = None
    val: Folders = None
    test: Folders = None
    names: list[str] | dict[int, str] | None = None
    nc: int | None = None


def read_config(source: Path) -> Config:
    """Return the folder's data.yaml, an empty one where it has none. Raises UserError."""
    file = _config_file(source)
    if file is None:
        return Config()
    try:
        return msgspec.yaml.decode(file.read_bytes(), type=Config)
    except msgspec.ValidationError as error:
        raise UserError(f"{file}: {error}; edit it (quote names like 3 or yes)") from error
    except msgspec.DecodeError as error:
        raise UserError(f"{file}: is no YAML ({' '.join(str(error).split())}); edit the file") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); make it readable") from error


def category_names(source: Path, config: Config, classes_file: Path | None) -> tuple[str, ...]:
    """Return the names by index: of the file given, else of data.yaml, classes.txt or obj.names.

    Raises UserError where none of them is there, or data.yaml contradicts itself.
    """
    if classes_file is not None:
        return read_names(classes_file)
    if config.names is None:
        for name in NAMES_FILES:
            if (source / name).is_file():
                return read_names(source / name)
        raise UserError(
            f"{source}: no data.yaml with `names`, no {' and no '.join(NAMES_FILES)} names its categories; "
            "write one a line into a file and give --classes FILE"
        )
    file = _config_file(source)
    names = config.names
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise UserError(f"{file}: the indices of `names` are {sorted(names)}; number them 0, 1, 2, …")
        names = [names[index] for index in range(len(names))]
    if config.nc not in (None, len(names)):
        raise UserError(f"{file}: nc is {config.nc} and `names` has {len(names)}; correct one of them")
    return check_names(names, f"{file}: `names`")


def _config_file(source: Path) -> Path | None:
    return next((source / name for name in CONFIG_FILES if (source / name).is_file()), None)
