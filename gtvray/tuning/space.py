"""The points of a search space: values by dotted key, for the keys whose conditions hold."""

from __future__ import annotations

import itertools
import math
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gtvray.config import Choice, Config, Range, applies, flatten, with_dotted
from gtvray.errors import GtvrayError

Point = dict[str, Any]
# Keys on which the plan of a training and its memory depend.
_PLANNED = ("network.", "training.patch_ijk", "training.batch_size", "training.precision", "training.compile")
# Above this number of combinations, only those in which at most two keys differ from the first corner are checked.
_MAX_CORNERS = 512


class Space:
    """A search space over the settings of a sweep.

    Args:
        entries: ranges and choices by dotted key; one that depends on another comes after it.
        config: settings of all trials, for the conditions on settings that are not searched.

    Attributes:
        entries, config: as given.
    """

    def __init__(self, entries: Mapping[str, Range | Choice], config: Config) -> None:
        self.entries = dict(entries)
        self.config = config
        self._fixed = {key: value for key, value in flatten(config).items() if key not in self.entries}

    def default(self) -> Point:
        """Return the point of the default settings, which may lie outside the ranges."""
        values = flatten(self.config)
        return self.build(lambda key, _: values[key])

    def nearest(self, point: Mapping[str, Any]) -> Point:
        """Return a point with every value outside the space replaced by the nearest one in it, or the first choice."""
        return self.build(lambda key, entry: entry.nearest(point[key] if key in point else entry.corners()[0]))

    def at(self, positions: Sequence[float]) -> Point:
        """Map a position in the unit cube, which has one axis per key, to a point."""
        axes = dict(zip(self.entries, positions, strict=True))
        return self.build(lambda key, entry: entry.at(axes[key]))

    def complete(self, point: Mapping[str, Any]) -> Point:
        """Return a point with the default value of every key that it lacks and that applies."""
        default = flatten(self.config)
        return self.build(lambda key, _: point.get(key, default[key]))

    def build(self, value: Callable[[str, Range | Choice], Any]) -> Point:
        """Build a point by calling `value` for every key that applies, in order.

        Args:
            value: returns the value of a key; called with key and entry.
        """
        point: Point = {}
        for key, entry in self.entries.items():
            if applies(entry, {**self._fixed, **point}):
                point[key] = value(key, entry)
        return point

    def holds(self, point: Mapping[str, Any]) -> bool:
        """Return whether a point has exactly the keys that apply, each with a value of its entry."""
        fitting = all(key in self.entries and self.entries[key].holds(value) for key, value in point.items())
        return fitting and self.build(lambda key, _: point.get(key)).keys() == point.keys()

    def grid(self) -> Iterator[Point]:
        """Yield every combination of the grid values, without repetitions."""
        return self._combinations({key: entry.grid() for key, entry in self.entries.items()})

    def corners(self) -> list[Point]:
        """Return the combinations of bounds and choices that the plan of a training depends on."""
        first = {key: entry.corners()[:1] for key, entry in self.entries.items()}
        conditions = {condition for entry in self.entries.values() for condition in entry.conditions}
        planned = {
            key: entry.corners() for key, entry in self.entries.items() if key.startswith(_PLANNED) or key in conditions
        }
        if math.prod(map(len, planned.values())) <= _MAX_CORNERS:
            return list(self._combinations(first | planned))
        pairs = itertools.combinations(planned, 2)
        return [
            point
            for one, other in pairs
            for point in self._combinations(first | {one: planned[one], other: planned[other]})
        ]

    def _combinations(self, values: Mapping[str, Sequence[Any]]) -> Iterator[Point]:
        """Yield the points with one of some values for every key that applies, each point once."""
        keys = list(self.entries)
        different = {
            key: [value for at, value in enumerate(each) if value not in each[:at]] for key, each in values.items()
        }

        def further(point: Point, at: int) -> Iterator[Point]:
            if at == len(keys):
                yield point
            elif applies(self.entries[keys[at]], ChainMap(point, self._fixed)):
                for value in different[keys[at]]:
                    yield from further({**point, keys[at]: value}, at + 1)
            else:
                yield from further(point, at + 1)

        return further({}, 0)


def check_corners(space: Space, config: Config, check: Callable[[Config], None]) -> Point:
    """Check that a training can run at every corner of the space.

    Args:
        space: the search space.
        config: settings of all trials.
        check: raises a `GtvrayError` if a training with the settings cannot work.

    Returns:
        the point of the default settings; if a training with them cannot work, the nearest point of the space.

    Raises:
        GtvrayError: of the first corner that cannot work, with its settings.
    """
    for point in space.corners():
        _check_point(point, config, check)
    default = space.default()
    try:
        _check_point(default, config, check)
    except GtvrayError:
        default = space.nearest(default)
        _check_point(default, config, check)
    return default


def _check_point(point: Point, config: Config, check: Callable[[Config], None]) -> None:
    try:
        check(with_dotted(config, point, "space"))
    except GtvrayError as error:
        do = "; or ".join(filter(None, [error.fields.get("do"), "remove the value from the search space"]))
        fields = {**error.fields, "where": f"a trial with {describe_point(point)}", "do": do}
        raise type(error)(error.what, **fields) from error


def describe_point(point: Mapping[str, Any]) -> str:
    """Format a point as `key=value` settings."""
    return " ".join(f"{key}={format_setting(value)}" for key, value in point.items())


def format_setting(value: Any) -> str:
    """Format a value of a setting with four significant digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(format_setting(each) for each in value) + "]"
    return str(value)


def unseen(points: Sequence[Point], seen: Sequence[Mapping[str, Any]]) -> Iterator[Point]:
    """Yield the points that are not among others, each once."""
    known = list(seen)
    for point in points:
        if point not in known:
            known.append(point)
            yield point
