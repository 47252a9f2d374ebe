"""Prediction of many scans: selection of the remaining scans, execution, and outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gtvray.batch.files import PredictFiles
from gtvray.batch.record import BatchRecord, Making
from gtvray.batch.steps import Result, Scan
from gtvray.errors import GtvrayError, InputError, ResourceError
from gtvray.io import remove_partial, require_distinct
from gtvray.runtime import SILENT, ProgressReporter

# Threads suffice: hashlib releases the GIL.
_READERS = 4
_MOST_NAMED = 3
# A full disk fails every scan: computing thousands of masks that cannot be written is useless.
_MOST_RESOURCE_ERRORS = 3

Executor = Callable[[list[Scan], Callable[[Scan], None], Callable[[Result], None]], None]


@dataclass(frozen=True)
class BatchOutcome:
    """The masks of many scans.

    Attributes:
        files: scans and outputs.
        rows: a row of JSON types for each scan, in order: the result, or `error` with a problem document.
        kept: number of masks kept from an earlier run.
        errors: errors of the scans that failed, in the order of failure.
    """

    files: PredictFiles
    rows: list[dict[str, Any]]
    kept: int
    errors: list[GtvrayError]


class BatchJob:
    """Predict scans into a folder, continuing an earlier run if its record exists, or into one file.

    Args:
        files: scans and outputs, not yet checked.
        uncertainty: whether the entropy is written, too.
        overwrite: replace earlier outputs of gtvray that were made with another model, scan or setting.
        show: receives progress.
    """

    def __init__(
        self, files: PredictFiles, *, uncertainty: bool, overwrite: bool, show: ProgressReporter = SILENT
    ) -> None:
        self.files = files
        self._uncertainty, self._overwrite, self._show = uncertainty, overwrite, show
        self._record = BatchRecord(files.folder) if files.folder is not None else None
        self._scans = [Scan(name, path, files.masks[path]) for path, name in files.names.items()]

    def check(self) -> set[str]:
        """Refuse outputs that would replace other files; return the names of scans with a recorded, unchanged mask.

        Raises:
            InputError: a refused output.
        """
        record = self._record
        if record is None:
            intact: set[str] = set()
        else:
            with ThreadPoolExecutor(_READERS) as readers:
                flags = list(readers.map(record.intact, self._scans))
            intact = {scan.name for scan, flag in zip(self._scans, flags, strict=True) if flag}
        rest = [scan for scan in self._scans if scan.name not in intact]
        started = [scan for scan in rest if record is not None and record.is_unfinished(scan)]
        fresh = [scan for scan in rest if scan not in started]
        require_distinct(output for scan in self._scans for output in self._outputs(scan))
        # What an interrupted run left is this command's own output.
        self.files.check([output for scan in started for output in self._outputs(scan)], overwrite=True)
        new = [output for scan in fresh for output in self._outputs(scan)]
        self.files.check([*new, *self.files.reports], overwrite=self._overwrite)
        return intact

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Exclude other processes from the folder within a `with` block.

        Raises:
            ResourceError: another process predicts into it.
        """
        with nullcontext() if self._record is None else self._record.writing():
            yield

    def left(self, making: Making) -> tuple[list[Scan], list[Scan]]:
        """Return the scans that are left to predict, and those whose masks are kept.

        Args:
            making: model and settings of this run.

        Raises:
            InputError: a recorded mask was made with another model, scan or setting, and may not be replaced.
        """
        record, intact = self._record, self.check()
        recorded = [scan for scan in self._scans if scan.name in intact]
        differences: dict[str, str] = {}
        if record is not None and recorded:
            self._show.begin("check", f"{len(recorded)} masks of an earlier run")
            with ThreadPoolExecutor(_READERS) as readers:
                reasons = readers.map(lambda scan: record.difference(scan, making), recorded)
                for number, (scan, reason) in enumerate(zip(recorded, reasons, strict=True), 1):
                    if reason is not None:
                        differences[scan.name] = reason
                    self._show.advance(number, len(recorded))
        if differences and not self._overwrite:
            self._refuse(differences)
        self.files.check(
            [out for scan in recorded if scan.name in differences for out in self._outputs(scan)], overwrite=True
        )
        kept = [scan for scan in recorded if scan.name not in differences]
        todo = [
            Scan(scan.name, scan.path, scan.mask, overwrite=self._may_replace(scan))
            for scan in self._scans
            if scan not in kept
        ]
        return todo, kept

    def run(self, todo: list[Scan], kept: list[Scan], making: Making, execute: Executor) -> BatchOutcome:
        """Predict what is left.

        Args:
            todo: from `left`.
            kept: from `left`.
            making: model and settings of this run.
            execute: predicts scans; calls back before each scan is started, and with its result.

        Raises:
            ResourceError: several scans in a row failed because a resource such as disk space was exhausted.
        """
        record = self._record
        rows = {scan.name: record.row(scan) for scan in kept} if record is not None else {}
        errors: list[GtvrayError] = []
        in_a_row = 0

        def started(scan: Scan) -> None:
            if record is not None:
                if record.is_unfinished(scan):
                    remove_partial(scan.mask)
                record.start(scan)

        def ended(result: Result) -> None:
            nonlocal in_a_row
            if record is not None:
                record.end(result, making)
            rows[result.scan] = result.row
            if result.error is not None:
                errors.append(result.error)
            done = len(rows) - len(kept)
            detail = f"{done} of {len(todo)} scans" + (f", {len(errors)} failed" if errors else "")
            self._show.advance(done, len(todo), detail)
            in_a_row = in_a_row + 1 if isinstance(result.error, ResourceError) else 0
            if result.error is not None and in_a_row >= _MOST_RESOURCE_ERRORS:
                raise result.error

        if todo:
            execute(todo, started, ended)
        return BatchOutcome(self.files, [rows[scan.name] for scan in self._scans], len(kept), errors)

    def _outputs(self, scan: Scan) -> list[Path]:
        return self.files.outputs(scan.path, uncertainty=self._uncertainty)

    def _may_replace(self, scan: Scan) -> bool:
        return self._overwrite or (self._record is not None and self._record.is_unfinished(scan))

    def _refuse(self, differences: dict[str, str]) -> None:
        named = "; ".join(f"{name}: {reason}" for name, reason in list(differences.items())[:_MOST_NAMED])
        more = f"; and {len(differences) - _MOST_NAMED} more" if len(differences) > _MOST_NAMED else ""
        raise InputError(
            "existing masks were made with another model, scan or setting",
            where=self.files.folder,
            found=named + more,
            do="add --overwrite to predict these scans again, or choose another folder",
        )
