"""How a script starts: Hydra composes its config, and what a user got wrong is told in one line."""

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TypeVar

import hydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from .compose import explain, parse, register
from .errors import UserError

Config = TypeVar("Config")

# With it Hydra hands its exceptions on; without it prints them, up to thirty lines each, and exits.
_FULL_ERROR = "HYDRA_FULL_ERROR"


def entry_point(
    schema: type[Config], conf: Path, name: str
) -> Callable[[Callable[[Config], None]], Callable[[], None]]:
    """Make a function of a config the script's main: conf/name.yaml, by the schema, with its command line.

    UserError and what Hydra refuses become one line on stderr and exit status 1; HYDRA_FULL_ERROR=1 in the
    environment shows where in Hydra that came from.
    """
    register(f"{name}_schema", schema)

    def decorate(task: Callable[[Config], None]) -> Callable[[], None]:
        running = False

        @wraps(task)  # Hydra names the job after the file that the innermost function is in
        def job(composed: DictConfig) -> None:
            nonlocal running
            running = True
            try:
                task(parse(schema, composed))
            except UserError as error:
                raise SystemExit(f"error: {error}") from None
            running = False  # of several jobs (-m) the next is about to be composed

        def main() -> None:
            nonlocal running
            running = False
            asked = os.environ.get(_FULL_ERROR, "0")
            os.environ[_FULL_ERROR] = "1"
            try:
                hydra.main(version_base="1.3", config_path=str(conf.resolve()), config_name=name)(job)()
            except (HydraException, OmegaConfBaseException, OSError, ValueError) as error:
                if running or asked == "1":  # what fails in the job is a fault of ours
                    raise
                raise SystemExit(f"error: {_describe(error, schema, conf)}") from None
            finally:
                os.environ[_FULL_ERROR] = asked

        return main

    return decorate


def _describe(error: Exception, schema: type, conf: Path) -> str:
    """Say in one line what kept Hydra from composing a config."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, OmegaConfBaseException):
        return explain(cause, schema, [path.name for path in conf.iterdir() if path.is_dir()])
    if isinstance(error, OverrideParseException):
        return _unparsable(error.override)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, file = error.missing_cfg_file.rpartition("/")
        return f"{group}={file}: there is no such file in conf/{group}; it has {', '.join(error.options)}"
    if isinstance(error, OSError) and error.filename:
        mend = "hydra.run.dir=… is the run's folder"
        return f"{error.filename} can't be opened or made ({error.strerror}); {mend}"
    return " ".join(str(error).split())


def _unparsable(override: str) -> str:
    key, equals, value = override.partition("=")
    if not equals:
        return f"{override} can't be parsed: give key=value"
    if value.startswith("~/"):
        return f"{override} can't be parsed: ~ is not expanded; write {key}=$HOME{value[1:]}"
    mend = "quote what has = ( ) [ ] { } : , a quote or a space, for Hydra within and the shell without"
    return f"{override} can't be parsed: {mend}: '{key}=\"…\"'"
