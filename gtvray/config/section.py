"""The base of every config section, and validation with errors that name the nearest valid key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from gtvray.errors import ConfigError

S = TypeVar("S", bound="Section")


class Section(BaseModel):
    """A frozen group of settings; its fields are the dotted keys of command line, YAML, search space and MLflow."""

    # NaN passes every bound that is a comparison, and neither NaN nor infinity can be written as JSON.
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def build(section: type[S], values: Mapping[str, Any], where: object) -> S:
    """Validate a nested mapping as a section.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of range; the first fault, and how many more there are.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        first, others = error.errors()[0], error.error_count() - 1
        key = _written_key(first["loc"], values)
        more = f" (and {others} more)" if others else ""
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"unknown setting{more}", where=where, found=key, do=suggestion(key, section)) from None
        raise ConfigError(
            f"invalid setting: {key}{more}",
            where=where,
            expected=first["msg"].removeprefix("Value error, "),
            found=first.get("input"),
            do="`gtvray config schema` lists every key, its type and range",
        ) from None


def _written_key(location: tuple[int | str, ...], values: Any) -> str:
    """Return the dotted key of a fault as written in the file, without the names that pydantic gives to branches."""
    if not location:
        return "inconsistent values"
    *parents, last = location
    parts = []
    for part in parents:
        known = isinstance(values, Mapping) and part in values
        if known or (isinstance(values, list | tuple) and isinstance(part, int)):
            values = values[part]
            parts.append(str(part))
    # The last part is the name of a branch unless it is a key, present or missing, of what holds it.
    branch = isinstance(last, str) and re.search(r"[\[\]-]", last)
    if isinstance(values, Mapping | list | tuple) and not branch:
        parts.append(str(last))
    return ".".join(parts)


def describe_keys(section: type[BaseModel], prefix: str = "") -> list[dict[str, str]]:
    """Return every dotted key with its default and description, in schema order."""
    rows: list[dict[str, str]] = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            rows += describe_keys(kind, f"{prefix}{name}.")
        else:
            default = str(field.get_default(call_default_factory=True))
            rows.append({"key": prefix + name, "default": default, "about": field.description or ""})
    return rows


def flatten(section: Section) -> dict[str, Any]:
    """Return dotted key -> value for every field, in schema order."""
    return dict(leaves(section.model_dump(mode="json")))


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of a nested mapping; keys may already be dotted."""
    for name, value in values.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(value, dict):
            yield from leaves(value, key)
        else:
            yield key, value


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in a nested mapping, in place.

    Raises:
        ConfigError: the key's section holds a value.
    """
    *sections, leaf = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{section} is a section of keys", where=key, found=values, do="nest its keys below it")
    values[leaf] = value


def nested(values: Mapping[str, Any], where: object) -> dict[str, Any]:
    """Return a mapping with dotted keys expanded: `a.b: 1` and `a: {b: 1}` mean the same.

    Raises:
        ConfigError: a key is set twice, or below a key that has a value.
    """
    result: dict[str, Any] = {}
    for key, value in values.items():
        parts = str(key).split(".")
        _merge(result, parts, nested(value, where) if isinstance(value, dict) else value, where)
    return result


def _merge(into: dict[str, Any], parts: list[str], value: Any, where: object) -> None:
    first, *rest = parts
    if rest:
        value = nested({".".join(rest): value}, where)
    if first not in into:
        into[first] = value
        return
    if not (isinstance(into[first], dict) and isinstance(value, dict)):
        raise ConfigError("a key is set twice", where=where, found=first, do="keep one of the two")
    for name, inner in value.items():
        _merge(into[first], [name], inner, where)


def suggestion(key: str, section: type[BaseModel]) -> str:
    """Return what to do about an unknown key: the nearest valid one, if there is one."""
    keys = [row["key"] for row in describe_keys(section)]
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    if not near:
        by_leaf = {known.rpartition(".")[2]: known for known in keys}
        near = [by_leaf[leaf] for leaf in difflib.get_close_matches(key.rpartition(".")[2], by_leaf, n=1, cutoff=0.6)]
    return f"did you mean {near[0]}?" if near else "`gtvray config schema` lists every key"
