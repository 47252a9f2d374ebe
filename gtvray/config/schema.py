"""The root of the one schema, and every way into it: YAML, dotted overrides, defaults."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from gtvray.config.base import Section
from gtvray.config.data import AugmentationConfig, CacheConfig, SplitConfig
from gtvray.config.inference import InferenceConfig
from gtvray.config.loss import LossConfig
from gtvray.config.network import NetworkConfig
from gtvray.config.optimizer import OptimizerConfig
from gtvray.config.preprocessing import PreprocessingConfig
from gtvray.config.promotion import PromotionConfig
from gtvray.config.serving import ServingConfig
from gtvray.config.tracking import TrackingConfig
from gtvray.config.training import TrainingConfig
from gtvray.config.tuning import SweepConfig
from gtvray.errors import ConfigError, NotFoundError

S = TypeVar("S", bound=Section)


# What differs between trials; the rest holds for a sweep as a whole.
_SEARCHABLE = (
    "preprocessing.windows_hu",
    "augmentation.",
    "network.",
    "loss.",
    "optimizer.",
    "training.",
    "inference.",
)
_PLANNED_ONCE = (
    "training.epochs",
    "training.time_budget_s",
    "training.num_workers",
    "training.cpus_per_worker",
    "training.use_gpu",
    "training.gpus_per_worker",
)


class Config(Section):
    """Everything a run can be told; a key is `section.field`."""

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
    """Defaults, then a YAML file of nested sections, then `key=value` overrides.

    Raises:
        NotFoundError: no such file.
        ConfigError: unknown key, wrong type, or a value out of range.
    """
    values: dict[str, Any] = read_yaml(path) if path is not None else {}
    where: object = path
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator:
            raise ConfigError("an override is key=value", found=item, do="write it like optimizer.lr=3e-4")
        check_key(key, "override")
        _put(values, key, _yaml_value(text, item))
        where = where or "overrides"
    return build(Config, values, where or "defaults")


def load_sweep(path: Path) -> SweepConfig:
    """Read a sweep file and try its keys and values against the schema.

    Raises:
        NotFoundError: no such file.
        ConfigError: unknown key, wrong type, an empty range, or a value the schema refuses.
    """
    sweep = build(SweepConfig, read_yaml(path), path)
    for key in [*sweep.base, *sweep.space]:
        check_key(key, path)
    for key in sweep.space:
        if not key.startswith(_SEARCHABLE) or key in _PLANNED_ONCE:
            raise ConfigError(
                "this key cannot be searched",
                where=path,
                expected="one of what a trial decides: " + ", ".join(prefix.rstrip(".") for prefix in _SEARCHABLE),
                found=key,
                do="fix it under base: cases are split and prepared, and workers planned, once a sweep",
            )
        if key in sweep.base:
            raise ConfigError("a key is both fixed and searched", where=path, found=key, do="keep one of the two")
    corners = [{key: probe} for key, entry in sweep.space.items() for probe in _probes(entry)]
    for point in [*corners, *sweep.start]:
        unknown = set(point) - set(sweep.space)
        if unknown:
            raise ConfigError("a start point has a key outside the space", where=path, found=sorted(unknown))
        for key, value in point.items():
            if not sweep.space[key].holds(value):
                raise ConfigError(f"a start point lies outside the range of {key}", where=path, found=value)
        with_dotted(Config(), {**sweep.base, **point}, path)
    return sweep


def with_dotted(config: Config, values: Mapping[str, Any], where: object = "values") -> Config:
    """The config with some dotted keys changed.

    Raises:
        ConfigError: as `load_config`.
    """
    nested = config.model_dump(mode="json")
    for key, value in values.items():
        check_key(key, where)
        _put(nested, key, value)
    return build(Config, nested, where)


def flatten(config: Section) -> dict[str, Any]:
    """Dotted key -> value for every leaf, in schema order."""
    return dict(_leaves(config.model_dump(mode="json"), ""))


def known_keys(section: type[BaseModel] = Config) -> list[str]:
    """Every dotted key of the schema, or of one section."""
    return [row["key"] for row in describe_keys(section)]


def describe_keys(section: type[BaseModel] = Config, prefix: str = "") -> list[dict[str, str]]:
    """Every dotted key with its default and what it means."""
    rows: list[dict[str, str]] = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            rows += describe_keys(kind, f"{prefix}{name}.")
        else:
            rows.append(
                {
                    "key": prefix + name,
                    "default": str(field.get_default(call_default_factory=True)),
                    "about": field.description or "",
                }
            )
    return rows


def check_key(key: str, where: object) -> None:
    """Refuse a key that the schema does not have, with the nearest that it has.

    Raises:
        ConfigError: unknown key.
    """
    if key not in known_keys():
        raise ConfigError("unknown config key", where=where, found=key, do=_suggestion(key))


def build(section: type[S], values: Mapping[str, Any], where: object) -> S:
    """Validate a mapping as a section and turn pydantic's report into ours.

    Raises:
        ConfigError: the first thing wrong, and how many more there are.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        first, others = error.errors()[0], error.error_count() - 1
        key = ".".join(str(part) for part in first["loc"])
        more = f" (and {others} more)" if others else ""
        if first["type"] == "extra_forbidden":
            raise ConfigError(
                f"unknown config key{more}", where=where, found=key, do=_suggestion(key, section)
            ) from None
        raise ConfigError(
            f"config value refused: {key}{more}",
            where=where,
            expected=first["msg"].removeprefix("Value error, "),
            found=first.get("input"),
            do="`gtvray config schema` lists every key, its type and range",
        ) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        NotFoundError: no such file.
        ConfigError: not YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except (FileNotFoundError, IsADirectoryError) as error:
        raise NotFoundError("no such config file", where=path) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("not a YAML file", where=path, found=error) from error
    if not isinstance(values, dict):
        raise ConfigError("a config file is a YAML mapping", where=path, found=type(values).__name__)
    return values


def _probes(entry: Any) -> list[Any]:
    if not hasattr(entry, "choice"):
        return [int(entry.low), int(entry.high)] if entry.integer else [entry.low, entry.high]
    return list(entry.choice)


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{section} is a section of keys", where=key, found=values, do="write its keys below it")
    values[leaf] = value


def _leaves(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, value


def _yaml_value(text: str, item: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError("an override's value is not YAML", found=item) from error
    # YAML 1.1 reads 3e-4 as text, for want of a dot; people mean a number, unless they put it in quotes.
    if isinstance(value, str) and value == text.strip():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _suggestion(key: str, section: type[BaseModel] = Config) -> str:
    keys = [row["key"] for row in describe_keys(section)]
    if key in keys:
        return "nest it in a file: the section, and below it the field"
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    if not near:
        by_leaf = {known.rpartition(".")[2]: known for known in keys}
        near = [by_leaf[leaf] for leaf in difflib.get_close_matches(key.rpartition(".")[2], by_leaf, n=1, cutoff=0.6)]
    return f"did you mean {near[0]}?" if near else "`gtvray config schema` lists every key"
