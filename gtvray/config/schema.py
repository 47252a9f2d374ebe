"""The root of the config schema, and loading of a `Config` from YAML files and `key=value` settings."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from gtvray.config.data import AugmentationConfig, CacheConfig, PreprocessingConfig, SplitConfig
from gtvray.config.inference import InferenceConfig
from gtvray.config.network import NetworkConfig
from gtvray.config.operation import PromotionConfig, ServingConfig, TrackingConfig
from gtvray.config.section import Section, build, describe_keys, nested, put, suggestion
from gtvray.config.training import LossConfig, OptimizerConfig, TrainingConfig
from gtvray.errors import ConfigError, InputError, NotFoundError
from gtvray.io import read_text

_SETTING = re.compile(r"([A-Za-z_]+)(?:\.[A-Za-z_]+)+=")


class Config(Section):
    """All settings; a key is `section.field`."""

    split: SplitConfig = SplitConfig()
    cache: CacheConfig = CacheConfig()
    preprocessing: PreprocessingConfig = PreprocessingConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    network: NetworkConfig = NetworkConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    inference: InferenceConfig = InferenceConfig()
    tracking: TrackingConfig = TrackingConfig()
    promotion: PromotionConfig = PromotionConfig()
    serving: ServingConfig = ServingConfig()


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Build a config from defaults, then a YAML file (nested or dotted keys), then `key=value` settings.

    Raises:
        NotFoundError: no such file.
        ConfigError: an unknown key, a wrong type, or a value out of range.
    """
    values: dict[str, Any] = nested(read_yaml(path), path) if path is not None else {}
    for key, value in read_settings(overrides).items():
        put(values, key, value)
    return build(Config, values, path or ("settings" if overrides else "defaults"))


def read_settings(words: Sequence[str]) -> dict[str, Any]:
    """Return the values of `key=value` settings by dotted key.

    Raises:
        ConfigError: an unknown key, or a value that is not YAML.
    """
    values: dict[str, Any] = {}
    for word in words:
        key, separator, text = word.partition("=")
        if not separator:
            raise ConfigError("a setting is written key=value", found=word, do="write it like optimizer.lr=3e-4")
        check_key(key, "settings")
        values[key] = _yaml_value(text, word)
    return values


def is_setting(word: str) -> bool:
    """Return whether a command-line word is a `section.field=value` setting.

    It is one if its section exists, or is a misspelling of one and no file has that name.
    """
    match = _SETTING.match(word)
    if match is None:
        return False
    sections = list(Config.model_fields)
    if match[1] in sections:
        return True
    return bool(difflib.get_close_matches(match[1], sections, n=1, cutoff=0.75)) and not Path(word).exists()


def with_dotted(config: Config, values: Mapping[str, Any], where: object = "values") -> Config:
    """Return the config with some dotted keys changed.

    Raises:
        ConfigError: as `load_config`.
    """
    changed = config.model_dump(mode="json")
    for key, value in values.items():
        check_key(key, where)
        put(changed, key, value)
    return build(Config, changed, where)


def known_keys(section: type[BaseModel] = Config) -> list[str]:
    """Return every dotted key of the schema, or of one section."""
    return [row["key"] for row in describe_keys(section)]


def check_key(key: str, where: object) -> None:
    """Refuse a key that the schema does not have.

    Raises:
        ConfigError: an unknown key, with the nearest valid one.
    """
    if key not in known_keys():
        raise ConfigError("unknown setting", where=where, found=key, do=suggestion(key, Config))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        NotFoundError: no such file.
        ConfigError: not YAML in UTF-8, or not a mapping.
    """
    try:
        values = yaml.safe_load(read_text(path))
    except NotFoundError as error:
        raise NotFoundError("no such config file", where=path) from error
    except InputError as error:
        raise ConfigError(error.what, **error.fields) from error
    except yaml.YAMLError as error:
        raise ConfigError("not a YAML file", where=path, found=error) from error
    if not isinstance(values, dict):
        raise ConfigError("a config file is a YAML mapping", where=path, found=type(values).__name__)
    return values


def _yaml_value(text: str, item: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError("the value of a setting is not YAML", found=item) from error
    # YAML 1.1 reads 3e-4 as text because it has no dot; it is meant as a number unless it is quoted.
    if isinstance(value, str) and value == text.strip():
        try:
            return float(value)
        except ValueError:
            return value
    return value
