"""Command line → checked config. A user's mistake becomes a one-line error; outputs are checked up front."""

import gc
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from tempfile import TemporaryFile
from textwrap import indent
from typing import Any, TypeVar, cast

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from .console import PlainConsole
from .errors import UserError

Schema = TypeVar("Schema")
Numbers = Mapping[str, float]


def run(main: Callable[[Schema], Numbers | None], schema: type[Schema], conf: Path, name: str) -> None:
    """Call a script's main with the config from conf/name.yaml and the command line, checked by the schema.

    --help shows the script's docstring and keys. UserError and Hydra's errors become one line on stderr and
    exit status 1. In a sweep (--multirun), a failed job prints its error and the sweep goes on. A sweep ends
    with one line per job, showing the numbers that main returned, and exit status 1 if a job failed. The
    first number is a sweeper's objective.
    """
    ConfigStore.instance().store(f"{name}_schema", schema)
    if {"--help", "-h"} & {*sys.argv[1:]}:
        print(sys.modules[main.__module__].__doc__, _help(conf, name), sep="\n", end="")
        raise SystemExit(0)
    is_sweep = bool({"--multirun", "-m", "hydra.mode=MULTIRUN"} & {*sys.argv[1:]})
    if is_sweep and os.environ.get("WORLD_SIZE", "1") != "1":  # they would share one torchrun store
        fix = "give each job a torchrun and a name=… of its own"
        raise SystemExit(f"error: --multirun is for one process; {fix}")
    jobs: dict[str, Numbers | None] = {}  # by folder and varied keys; None if the job failed

    @wraps(main)  # Hydra names the job after the file that defines the wrapped function
    def job(composed: DictConfig) -> float | None:
        title = " ".join([os.path.relpath(HydraConfig.get().runtime.output_dir), *varied()])
        jobs[title] = None
        with _telling_what_fails(title if is_sweep else None):
            jobs[title] = main(parse(schema, composed)) or {}
        gc.collect()  # networks and pipelines are in reference cycles; the next job needs their memory
        return next(iter((jobs[title] or {}).values()), None)

    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints a long traceback and exits
    try:
        hydra.main(version_base="1.3", config_path=str(conf.resolve()), config_name=name)(job)()
    except (HydraException, OmegaConfBaseException, OSError, ValueError) as error:
        if jobs:  # main started, so this is a bug in it
            raise
        raise SystemExit(f"error: {_explain_hydra(error, schema, conf)}") from None
    if is_sweep:
        _conclude(jobs)


@contextmanager
def _telling_what_fails(job: str | None) -> Iterator[None]:
    """End the script with a one-line error after a UserError. In a sweep, print any error and go on."""
    try:
        yield
    except UserError as error:
        with suppress(OSError):  # the folder is not empty
            # Hydra made the folder, but the run never started.
            os.removedirs(os.path.relpath(HydraConfig.get().runtime.output_dir))
        if job is None:
            raise SystemExit(f"error: {error}") from None
        print(f"error: {job}: {error}", file=sys.stderr)
    except Exception:
        if job is None:
            raise
        traceback.print_exc()


def _conclude(jobs: Mapping[str, Numbers | None]) -> None:
    """Print each job of a sweep with its numbers; exit with status 1 if one failed."""
    console = PlainConsole()
    for title, numbers in jobs.items():
        shown = [f"{key} {round(value, 3)}" for key, value in (numbers or {}).items()]
        console.print(f"{title}: {'failed' if numbers is None else ', '.join(shown)}")
    if None in jobs.values():
        raise SystemExit(1)


def varied() -> list[str]:
    """List the keys that the sweep varies, as key=value of the current job; empty outside a sweep."""
    given = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(given)
    keys = {each.get_key_element() for each in parsed if each.is_sweep_override()}
    return [each for each in HydraConfig.get().overrides.task if each.partition("=")[0] in keys]


def parse(schema: type[Schema], composed: DictConfig) -> Schema:
    """Turn Hydra's composed config into the typed object that the rest of the code uses.

    Merging into a fresh schema also catches what Hydra lets through (`+unknown=1`).
    Raises UserError naming the key and what is wrong with it.
    """
    try:
        plain = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
        typed = OmegaConf.merge(OmegaConf.structured(schema), plain)
        return cast(Schema, OmegaConf.to_object(typed))
    except OmegaConfBaseException as error:
        raise UserError(_explain_key(error, schema)) from error


def as_yaml(config: object) -> str:
    """Return a config object as human-readable yaml."""
    return OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True)


def as_plain(config: object) -> dict[str, object]:
    """Return a config object as nested dicts of plain values, for checkpoints."""
    container = OmegaConf.to_container(OmegaConf.structured(config), resolve=True, enum_to_str=True)
    return cast(dict[str, object], container)


def by_full_key(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts; keys become dotted, as on the command line."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = prefix + key
        flat |= by_full_key(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


@contextmanager
def writing(path: Path, key: str) -> Iterator[None]:
    """Turn a failure to write a path into a UserError that names the path and its config key."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{path} can't be written ({reason}); give another {key}=…, or make room") from error


def check_folder(folder: Path, key: str) -> None:
    """Make a folder. Raises UserError, naming the config key, if files can't be written there."""
    with writing(folder, key):
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()


def check_file(given: str | None, key: str) -> None:
    """Raise UserError, naming the config key, if a file can't be written; None means that no file is wanted.

    Makes the file's folder. Leaves an existing file unchanged.
    """
    if given is None:
        return
    path = Path(given)
    if path.is_dir() or given.endswith("/"):
        raise UserError(f"{key}={given} names the folder {path}; give {key}={path / 'NAME'}")
    check_folder(path.parent, key)
    if path.exists():
        with writing(path, key):
            path.open("ab").close()


def _help(conf: Path, name: str) -> str:
    """Return a script's file in conf/, then each config group's choices and the file chosen by default.

    The files are shown verbatim because their comments explain the keys; Hydra's own help drops comments.
    """
    file = conf / f"{name}.yaml"
    parts = [file.read_text(encoding="utf-8")]
    for default in OmegaConf.load(file).defaults:
        for group, choice in () if isinstance(default, str) else default.items():
            files = {path.stem: path for path in sorted((conf / group).glob("*.yaml"))}
            if files:
                parts.append(f"{group}: {', '.join(files)}\n")
            if choice in files:
                keys = indent(files[choice].read_text(encoding="utf-8"), "  ")
                parts.append(f"# {group}={choice}\n{group}:\n{keys}")
    return "\n".join(parts)


def _explain_hydra(error: Exception, schema: type, conf: Path) -> str:
    """Return a one-line message that says why Hydra couldn't compose a config."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, OmegaConfBaseException):
        # Hydra also accepts config groups as keys.
        return _explain_key(cause, schema, [path.name for path in conf.iterdir() if path.is_dir()])
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override} can't be parsed: give key=value, with $HOME for ~, and quote a value with "
            "= ( ) [ ] { } : , a quote or a space, once for Hydra and once for the shell: 'key=\"…\"'"
        )
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, file = error.missing_cfg_file.rpartition("/")
        return f"{group}={file}: there is no such file in conf/{group}; it has {', '.join(error.options)}"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename} can't be opened or made ({error.strerror}); give another hydra.run.dir=…"
    return " ".join(str(error).split())


def _explain_key(error: OmegaConfBaseException, schema: type, groups: Sequence[str] = ()) -> str:
    """Return a one-line message that says which key is wrong, and why."""
    key = str(error.full_key)
    if isinstance(error, MissingMandatoryValue):
        return f"{key} is not set: give {key}=…"
    if not isinstance(error, ConfigKeyError | ConfigAttributeError):
        return f"{key}: {str(error.msg or error).splitlines()[0]}"
    section, _, name = key.rpartition(".")
    names = {each: each.rpartition(".")[2] for each in (*by_full_key(as_plain(schema)), *groups)}
    siblings = [names[each] for each in names if each.startswith(f"{section}.")]
    if siblings:
        return f"unknown config key {key}; {section} has {', '.join(siblings)}"
    near = get_close_matches(name, names.values(), n=1)
    meant = " or ".join(each for each in names if names[each] in near)
    fix = f"did you mean {meant}?" if meant else "the files in conf/ have the known ones"
    return f"unknown config key {key}; {fix}"
