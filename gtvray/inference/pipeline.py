"""Segment many scans with one model: the next are loaded, and the last written, while the network runs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gtvray.datasets import volume_stem
from gtvray.errors import GtvrayError
from gtvray.geometry import Volume
from gtvray.inference.request import Coverage, SegmentationRequest
from gtvray.inference.uncertainty import Uncertainty, estimate_uncertainty
from gtvray.io import read_volume, write_output_volume

if TYPE_CHECKING:
    from gtvray.inference.predictor import Predictor

_Estimate = tuple[Uncertainty, Volume]
_Ran = tuple[SegmentationRequest, "StageClock", _Estimate | None]
Key = TypeVar("Key")
Loaded = TypeVar("Loaded")
Ran = TypeVar("Ran")
Stored = TypeVar("Stored")

# Scans in memory beside the one that runs: loaded ahead of it, and waiting behind it to be stored.
AHEAD = 2
BEHIND = 1


def overlapped(
    keys: Iterable[Key],
    load: Callable[[Key], Loaded],
    run: Callable[[Loaded], Ran],
    store: Callable[[Key, Ran], Stored],
) -> Iterator[tuple[Key, Stored | GtvrayError]]:
    """Load, run and store each key, in order; `run` in the calling thread, `load` and `store` in one thread each.

    A GtvrayError of a key is yielded in place of its result, and the other keys continue. When the caller is
    interrupted, the store in progress is completed and nothing else is started.

    Yields:
        each key with the result of `store`, or the error.
    """
    waiting = iter(keys)
    loading: deque[tuple[Key, Future[Loaded]]] = deque()
    storing: deque[tuple[Key, Callable[[], Stored | GtvrayError]]] = deque()
    reader, writer = ThreadPoolExecutor(1, "read"), ThreadPoolExecutor(1, "write")

    def load_ahead() -> None:
        while len(loading) < AHEAD and (key := next(waiting, None)) is not None:
            loading.append((key, reader.submit(load, key)))

    def attempted(key: Key, future: Future[Loaded]) -> Callable[[], Stored | GtvrayError]:
        try:
            storing = writer.submit(store, key, run(future.result()))
        except GtvrayError as error:
            return partial(_same, error)
        return partial(_outcome, storing)

    try:
        load_ahead()
        while loading:
            key, future = loading.popleft()
            storing.append((key, attempted(key, future)))
            # Only the writer may hold the loaded scan from here, before more are loaded.
            del future
            load_ahead()
            while len(storing) > (BEHIND if loading else 0):
                done, outcome = storing.popleft()
                yield done, outcome()
    finally:
        reader.shutdown(cancel_futures=True)
        writer.shutdown(cancel_futures=True)


def _outcome(storing: Future[Stored]) -> Stored | GtvrayError:
    try:
        return storing.result()
    except GtvrayError as error:
        return error


def _same(error: GtvrayError) -> GtvrayError:
    return error


@dataclass
class StageClock:
    """Seconds of a case in each stage.

    Attributes:
        seconds: stage -> seconds, in the order of the stages.
    """

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a `with` block."""
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


@dataclass(frozen=True)
class SegmentedCase:
    """A scan whose mask is on disk.

    Attributes:
        mask: file of the mask.
        volume_ml: volume of the mask.
        coverage: how much of the scan was run.
        notes: remarks on the scan for readers of the mask.
        seconds: stage -> seconds.
        out_of_domain: reasons why the scan differs from the model's intended input; empty if there are none.
        uncertainty: of the mask; None unless requested.
    """

    mask: Path
    volume_ml: float
    coverage: Coverage
    notes: tuple[str, ...]
    seconds: dict[str, float]
    out_of_domain: tuple[str, ...] = ()
    uncertainty: Uncertainty | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {
            "mask": str(self.mask),
            "volume_ml": round(self.volume_ml, 3),
            **asdict(self.coverage),
            "notes": list(self.notes),
            "out_of_domain": list(self.out_of_domain),
            **({"uncertainty": self.uncertainty.as_dict()} if self.uncertainty else {}),
            "milliseconds": round(1000 * sum(self.seconds.values())),
            "seconds": {stage: round(seconds, 4) for stage, seconds in self.seconds.items()},
        }


class LocalCases:
    """Load, segment and store scans in this process; the three steps for `overlapped`.

    Args:
        predictor: the model.
        target: scan file -> mask file.
        uncertainty: estimate it too, and write the entropy of each voxel to a file beside the mask.
        overwrite: replace earlier outputs of gtvray, as `gtvray.io.write_output` does.
    """

    def __init__(
        self,
        predictor: Predictor,
        target: Callable[[Path], Path],
        *,
        uncertainty: bool = False,
        overwrite: bool = False,
    ) -> None:
        self._predictor, self._target = predictor, target
        self._uncertainty, self._overwrite = uncertainty, overwrite

    def load(self, path: Path) -> tuple[SegmentationRequest, StageClock]:
        """Read and prepare a scan.

        Raises:
            DataError: the file is not the CT of a body.
        """
        clock = StageClock()
        with clock.stage("read"):
            scan = read_volume(path)
        with clock.stage("prepare"):
            request = self._predictor.begin(scan, path, mask_only=True)
        return request, clock

    def run(self, loaded: tuple[SegmentationRequest, StageClock]) -> _Ran:
        """Run every patch, and estimate the uncertainty if requested."""
        request, clock = loaded
        with clock.stage("network"):
            self._predictor.run(request)
        estimate = None
        if self._uncertainty:
            with clock.stage("uncertainty"):
                estimate = estimate_uncertainty(self._predictor, request.prepared, request.mask())
        return request, clock, estimate

    def store(self, path: Path, ran: _Ran) -> SegmentedCase:
        """Resample the mask to the scan's grid and write it.

        Raises:
            InputError: there is another file of that name.
            ResourceError: the disk is full.
        """
        request, clock, estimate = ran
        with clock.stage("restore"):
            mask = request.mask()
        target = self._target(path)
        with clock.stage("write"):
            write_output_volume(target, mask, overwrite=self._overwrite)
            if estimate is not None:
                write_output_volume(entropy_file(target), estimate[1], overwrite=self._overwrite)
        volume_ml = float(mask.array.sum(dtype=int)) * mask.voxel_volume_ml
        return SegmentedCase(
            target,
            volume_ml,
            request.coverage(),
            request.notes,
            clock.seconds,
            request.out_of_domain,
            estimate[0] if estimate is not None else None,
        )


def entropy_file(mask: Path) -> Path:
    """The file of a mask's entropy, voxel by voxel, beside the mask."""
    return mask.with_name(f"{volume_stem(mask.name)}-entropy.nii.gz")
