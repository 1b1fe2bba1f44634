"""Hydra's composed config → the typed object that the code takes, and back to yaml and plain values."""

from typing import TypeVar, cast

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

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
    except ConfigKeyError as error:
        raise ConfigError(
            f"unknown config key {error.full_key}: see the files in conf/ for the known ones"
        ) from error
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} is not set: give {error.full_key}=…") from error
    except OmegaConfBaseException as error:
        reason = str(error.msg or error).splitlines()[0]
        raise ConfigError(f"{error.full_key}: {reason}") from error


def as_yaml(config: object) -> str:
    """Write a config object as yaml, for people."""
    return OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True)


def as_plain(config: object) -> dict[str, object]:
    """Return a config object as nested dicts of plain values, for checkpoints."""
    container = OmegaConf.to_container(OmegaConf.structured(config), resolve=True, enum_to_str=True)
    return cast(dict[str, object], container)
