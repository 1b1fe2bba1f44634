"""Hydra's composed config → the typed object that the code takes, and back to yaml and plain values."""

from collections.abc import Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from typing import TypeVar, cast

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from .config import ConfigError

Schema = TypeVar("Schema")


def register(name: str, schema: type) -> None:
    """Tell Hydra the schema that a file in conf/ begins with."""
    ConfigStore.instance().store(name=name, node=schema)


def parse(schema: type[Schema], composed: DictConfig) -> Schema:
    """Turn Hydra's composed config into the typed object that the rest of the code takes.

    Merging into a fresh schema also catches what Hydra lets through (`+unknown=1`).
    Raises ConfigError naming the key and what is wrong with it.
    """
    try:
        plain = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
        typed = OmegaConf.merge(OmegaConf.structured(schema), plain)
        return cast(Schema, OmegaConf.to_object(typed))
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error, schema)) from error


def explain(error: OmegaConfBaseException, schema: type, groups: Sequence[str] = ()) -> str:
    """Say in one line which key is wrong, and what is wrong with it.

    Known are the keys of a schema and config groups, which Hydra takes for keys.
    """
    key = str(error.full_key)
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return f"unknown config key {key}; {_meant(key, [*_keys(schema), *groups])}"
    if isinstance(error, MissingMandatoryValue):
        return f"{key} is not set: give {key}=…"
    return f"{key}: {str(error.msg or error).splitlines()[0]}"


def _meant(key: str, known: Sequence[str]) -> str:
    """Say which of the known keys was perhaps meant: one of that section, or elsewhere one of that name."""
    section, _, name = key.rpartition(".")
    by_name = {each.rpartition(".")[2]: each for each in known if each.rpartition(".")[0] == section}
    own = list(by_name)
    if not section:
        by_name = {each.rpartition(".")[2]: each for each in known} | by_name
    near = [by_name[each] for each in get_close_matches(name, by_name)]
    if section and own and not near:
        return f"{section} has {', '.join(own)}"
    near = near or get_close_matches(key, set(known))
    if not near:
        return "the files in conf/ have the known ones"
    return f"near to it {'is' if len(near) == 1 else 'are'} {', '.join(near)}"


def _keys(schema: type, section: str = "") -> list[str]:
    """List a schema's keys and sections, in full."""
    keys = []
    for name, node in vars(schema()).items():
        keys.append(section + name)
        if is_dataclass(node):
            keys += _keys(type(node), f"{section}{name}.")
    return keys


def as_yaml(config: object) -> str:
    """Write a config object as yaml, for people."""
    return OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True)


def as_plain(config: object) -> dict[str, object]:
    """Return a config object as nested dicts of plain values, for checkpoints."""
    container = OmegaConf.to_container(OmegaConf.structured(config), resolve=True, enum_to_str=True)
    return cast(dict[str, object], container)
