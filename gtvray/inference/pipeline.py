"""Many scans through one network: the next are read and prepared, and the last written, while it is at work."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gtvray.datasets import volume_stem
from gtvray.errors import GtvrayError
from gtvray.geometry import Volume
from gtvray.inference.case import CaseJob, Coverage
from gtvray.inference.uncertainty import Uncertainty, estimate_uncertainty
from gtvray.io import read_volume, write_output_volume

if TYPE_CHECKING:
    from gtvray.inference.predictor import Predictor

_Estimate = tuple[Uncertainty, Volume]
Key = TypeVar("Key")
Loaded = TypeVar("Loaded")
Ran = TypeVar("Ran")
Stored = TypeVar("Stored")

# Scans in memory beside the one in the network: so many that wait for it, and so many that wait to be written.
AHEAD = 2
BEHIND = 1


def overlapped(
    keys: Iterable[Key],
    load: Callable[[Key], Loaded],
    run: Callable[[Loaded], Ran],
    store: Callable[[Key, Ran], Stored],
) -> Iterator[tuple[Key, Stored | GtvrayError]]:
    """Load, run and store each of many things, in order; `run` in this thread, the others beside it.

    One that raises a GtvrayError in any stage is given back with it, and the others go on. When the caller is
    interrupted, what is being stored is stored to its end and nothing else is begun.

    Returns:
        each key with what `store` returned.
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
            # The writer alone holds what was loaded, before more is.
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
    """Seconds a case spends in each stage.

    Attributes:
        seconds: stage -> seconds, in the order of the stages.
    """

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done in a `with` block."""
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


@dataclass(frozen=True)
class SegmentedCase:
    """A scan whose mask is on disk.

    Attributes:
        mask: the file.
        volume_ml: of the mask.
        coverage: what was looked at.
        notes: what a reader of the mask should know about the scan.
        seconds: by stage.
        out_of_domain: why the scan is unlike what the model was made for; empty if nothing speaks for that.
        uncertainty: of the mask, where that was asked for.
    """

    mask: Path
    volume_ml: float
    coverage: Coverage
    notes: tuple[str, ...]
    seconds: dict[str, float]
    out_of_domain: tuple[str, ...] = ()
    uncertainty: Uncertainty | None = None


class LocalCases:
    """The three steps of a scan that is segmented in this process.

    Args:
        predictor: a warm model.
        target: the file of a scan's mask.
        uncertainty: estimate it as well; each voxel's entropy goes into a file beside the mask.
        overwrite: earlier outputs of gtvray may be replaced, as `gtvray.io.write_output` does.
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

    def load(self, path: Path) -> tuple[CaseJob, StageClock]:
        """Read and prepare.

        Raises:
            DataError: the file is not the CT of a body.
        """
        clock = StageClock()
        with clock.stage("read"):
            scan = read_volume(path)
        with clock.stage("prepare"):
            job = self._predictor.begin(scan, path, mask_only=True)
        return job, clock

    def run(self, loaded: tuple[CaseJob, StageClock]) -> tuple[CaseJob, StageClock, _Estimate | None]:
        """Answer every patch."""
        job, clock = loaded
        with clock.stage("network"):
            self._predictor.run(job)
        estimate = None
        if self._uncertainty:
            with clock.stage("uncertainty"):
                estimate = estimate_uncertainty(self._predictor, job.prepared, job.finish())
        return job, clock, estimate

    def store(self, path: Path, ran: tuple[CaseJob, StageClock, _Estimate | None]) -> SegmentedCase:
        """Bring the mask to the scan's grid and write it.

        Raises:
            InputError: there is another file of that name.
            ResourceError: the disk is full.
        """
        job, clock, estimate = ran
        with clock.stage("restore"):
            mask = job.finish()
        target = self._target(path)
        with clock.stage("write"):
            write_output_volume(target, mask, overwrite=self._overwrite)
            if estimate is not None:
                write_output_volume(entropy_file(target), estimate[1], overwrite=self._overwrite)
        volume_ml = float(mask.array.sum(dtype=int)) * mask.voxel_volume_ml
        coverage, known = job.coverage(), estimate[0] if estimate is not None else None
        return SegmentedCase(target, volume_ml, coverage, job.notes, clock.seconds, job.out_of_domain, known)


def entropy_file(mask: Path) -> Path:
    """The file of a mask's entropy, voxel by voxel, beside the mask."""
    return mask.with_name(f"{volume_stem(mask.name)}-entropy.nii.gz")
