"""Spacing, patch, batch and network size of a training from its data and device, with a reason for each.

The order is nnU-Net's (Isensee et al., Nature Methods 2021): spacing from the scans, the largest patch that memory
allows, then the batch, then the depth, which follows from the patch. Values set by the user are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from gtvray.config import Config, with_dotted
from gtvray.data import Fingerprint
from gtvray.models import plan_network
from gtvray.training.memory import check_memory, training_bytes

KEYS = ("preprocessing.spacing_mm", "network.size", "training.patch_ijk", "training.batch_size")
_STEP = 16
# A CPU computes a patch of 48 x 48 x 48 at 3 mm in seconds: the defaults. A GPU is bounded by its memory.
_FINEST_MM = {"CPU": 3.0, "GPU": 1.0}
_MOST_VOXELS = {"CPU": 48**3, "GPU": 192**3}
_SMALLEST_BATCH = 2
# As nnU-Net: a step sees at most a twentieth of all voxels.
_MOST_OF_DATA = 0.05
_HEADROOM = 0.8


@dataclass(frozen=True)
class PlannedValue:
    """One value of a plan, and the reason for it."""

    key: str
    value: Any
    why: str


@dataclass(frozen=True)
class Plan:
    """Settings of a training that fits into memory.

    Attributes:
        config: settings with all values decided.
        choices: the decided values, in order of decision.
        origin: dotted keys that were given.
        needed_bytes: estimate of what a worker takes.
        memory_bytes: what its device has; None if that is not known here.
    """

    config: Config
    choices: tuple[PlannedValue, ...]
    origin: tuple[str, ...]
    needed_bytes: int
    memory_bytes: int | None

    def given(self) -> dict[str, Any]:
        """The sections of a config file with the given and the decided values."""
        values = self.config.model_dump(mode="json")
        keys = [*self.origin, *(choice.key for choice in self.choices)]
        sections: dict[str, Any] = {}
        for section, field in (key.split(".") for key in keys):
            sections.setdefault(section, {})[field] = values[section][field]
        return sections

    def as_dict(self) -> dict[str, Any]:
        """The choices and the memory, for JSON."""
        choices = [asdict(choice) for choice in self.choices]
        return {"choices": choices, "needed_bytes": self.needed_bytes, "memory_bytes": self.memory_bytes}


def plan_training(
    fingerprint: Fingerprint, memory_bytes: int | None, config: Config, given: Collection[str] | None = None
) -> Plan:
    """Decide the values that are not given.

    Args:
        fingerprint: of cases prepared by `config.preprocessing`.
        memory_bytes: of the device that a worker trains on; a fifth of it is left free. None where it is not known:
            then memory is not checked, and all of `KEYS` must be given.
        config: all other settings, and the given values.
        given: dotted keys whose values are kept; by default those that were set explicitly in `config`.

    Raises:
        ConfigError: the given values need more memory than there is, or contradict each other.
    """
    set_here = given_keys(config)
    given = set_here if given is None else given
    extent_mm = [n * mm for n, mm in zip(fingerprint.prepared_shape, config.preprocessing.spacing_mm, strict=True)]
    assert memory_bytes is not None or set(KEYS) <= set(given)
    plan = _Planner(fingerprint, int((memory_bytes or 0) * _HEADROOM), config, extent_mm)
    deciding: dict[str, Callable[[], tuple[Any, str]]] = {
        "preprocessing.spacing_mm": plan.spacing_mm,
        "network.size": plan.size,
        "training.patch_ijk": plan.patch_ijk,
        "training.batch_size": plan.batch_size,
    }
    choices = []
    for key in KEYS:
        if key in given:
            value = _value(config, key)
            # A config read back from a run has every key set.
            why = "the default" if key not in set_here and value == _value(Config(), key) else "given"
            choices.append(PlannedValue(key, value, why))
            continue
        value, why = deciding[key]()
        plan.config = with_dotted(plan.config, {key: value})
        choices.append(PlannedValue(key, value, why))
    if memory_bytes is not None:
        check_memory(plan.config, memory_bytes)
    return Plan(plan.config, tuple(choices), tuple(sorted(given)), training_bytes(plan.config), memory_bytes)


def given_keys(config: Config) -> set[str]:
    """Dotted keys that a config was made with explicitly."""
    sections = {name: getattr(config, name) for name in config.model_fields_set}
    return {f"{name}.{field}" for name, section in sections.items() for field in section.model_fields_set}


def describe_plan(plan: Plan) -> str:
    """The plan as text: a line for each value with its reason, and the resulting network."""
    config = plan.config
    rows = [f"{choice.key}: {_text(choice.value)} ({choice.why})" for choice in plan.choices]
    memory = f"memory: about {plan.needed_bytes / 1e9:.1f}"
    if plan.memory_bytes is None:
        rows.append(f"{memory} GB per worker, checked on the worker")
    else:
        rows.append(f"{memory} of {plan.memory_bytes / 1e9:.1f} GB per worker")
    network = plan_network(config.network, config.preprocessing.spacing_mm, config.training.patch_ijk)
    return "\n".join([*rows, network.as_text()])


class _Planner:
    """Decides one value after another, each from those before it."""

    def __init__(self, fingerprint: Fingerprint, memory_bytes: int, config: Config, extent_mm: list[float]) -> None:
        self.config = config
        self._fingerprint, self._memory_bytes, self._extent_mm = fingerprint, memory_bytes, extent_mm
        self._device = "GPU" if config.training.use_gpu else "CPU"

    def spacing_mm(self) -> tuple[tuple[float, ...], str]:
        finest, median_mm = _FINEST_MM[self._device], self._fingerprint.spacing_mm
        value = tuple(round(min(20.0, max(finest, mm)), 2) for mm in median_mm)
        return value, f"the scans' median is {_text(median_mm)}, not finer than {finest:g} on a {self._device}"

    def size(self) -> tuple[str, str]:
        size = "base" if self.config.training.use_gpu else "small"
        return size, f"for a {self._device}"

    def patch_ijk(self) -> tuple[tuple[int, ...], str]:
        spacing_mm, most = self.config.preprocessing.spacing_mm, _MOST_VOXELS[self._device]
        caps = [
            max(_STEP, -(-int(size / mm) // _STEP) * _STEP)
            for size, mm in zip(self._extent_mm, spacing_mm, strict=True)
        ]
        side_mm = (most * prod(spacing_mm)) ** (1 / 3)
        patch = [
            min(cap, max(_STEP, round(side_mm / mm / _STEP) * _STEP)) for cap, mm in zip(caps, spacing_mm, strict=True)
        ]
        while (prod(patch) > most or not self._fits({"training.patch_ijk": patch})) and max(patch) > _STEP:
            extents = [n * mm if n > _STEP else 0 for n, mm in zip(patch, spacing_mm, strict=True)]
            patch[extents.index(max(extents))] -= _STEP
        extent = _text([n * mm for n, mm in zip(patch, spacing_mm, strict=True)])
        return tuple(
            patch
        ), f"{extent} mm of a median body of {_text(self._extent_mm)} mm, limited by {self._device} and memory"

    def batch_size(self) -> tuple[int, str]:
        training = self.config.training
        workers = training.num_workers
        smallest = batch = -(-_SMALLEST_BATCH // workers) * workers
        if not training.use_gpu:
            return batch, f"the smallest with at least {_SMALLEST_BATCH} patches, shared by {workers} workers"
        voxels = self._fingerprint.cases * prod(self._extent_mm) / prod(self.config.preprocessing.spacing_mm)
        most = _MOST_OF_DATA * voxels / prod(training.patch_ijk)
        while batch + workers <= most and self._fits({"training.batch_size": batch + workers}):
            batch += workers
        return (
            batch,
            "limited by memory and a twentieth of all voxels"
            if batch > smallest
            else f"the smallest with at least {_SMALLEST_BATCH} patches",
        )

    def _fits(self, change: dict[str, Any]) -> bool:
        needed = {"training.batch_size": max(_SMALLEST_BATCH, self.config.training.num_workers), **change}
        return training_bytes(with_dotted(self.config, needed)) <= self._memory_bytes


def _value(config: Config, key: str) -> Any:
    section, field = key.split(".")
    return getattr(getattr(config, section), field)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " x ".join(f"{each:g}" if isinstance(each, int) else f"{each:.3g}" for each in value)
    return str(value)
