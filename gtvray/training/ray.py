"""`fit` on several workers with Ray Train; the driver sees the same generator of reports.

A group that has lost a worker, a machine or its controller is restarted here and not by Ray Train: an error that a
worker reports itself, such as a full disk, would only occur again, and Ray Train's own controller may be what was lost.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from gtvray.config import Config
from gtvray.data import CachedCase
from gtvray.runtime import log_fields, remove_orphaned_groups
from gtvray.training.checkpoints import decide_start
from gtvray.training.fence import names_of
from gtvray.training.fit import EpochReport
from gtvray.training.group import GroupLostError, Workers
from gtvray.training.lost import lost_error
from gtvray.training.mailbox import Job

_log = logging.getLogger(__name__)


def fit_distributed(
    config: Config,
    train: Sequence[CachedCase],
    selection: Sequence[CachedCase],
    folder: Path,
    *,
    resume: Path | None = None,
    known_epoch: int | None = None,
    workers: Workers | None = None,
) -> Iterator[EpochReport]:
    """`fit` on `training.num_workers` workers of the connected cluster.

    When a worker, its machine or the group's controller is lost, or a worker hangs, a new group resumes from the
    newest checkpoint, at most `training.max_failures` times; the next report's `notes` name the reason. Closing the
    generator stops the workers at the end of their epoch.

    Args:
        config: see `fit`.
        train: see `fit`.
        selection: see `fit`.
        folder: see `fit`.
        resume: see `fit`.
        known_epoch: see `fit`.
        workers: workers to use and to keep for the caller's next training; by default they end with this one.

    Raises:
        TrainingError: also if workers are lost too often.
        ResourceError: also if workers are lost for lack of memory, or the cluster has no free resources for them.
    """
    remove_orphaned_groups()
    kept = workers or Workers()
    start, found = decide_start(folder, resume)
    first = last = known_epoch if known_epoch is not None else 0 if found is None else int(found.meta["epoch"])
    notes: list[str] = []
    try:
        for failures in range(config.training.max_failures + 1):
            if failures:
                # A checkpoint that this call has written takes precedence over the one it started from.
                start, _ = decide_start(folder, resume if last == first else None)
            try:
                for report in kept.train(Job(config, list(train), list(selection), folder, start, last)):
                    if report.epoch > last:
                        last = report.epoch
                        yield replace(report, notes="; ".join(filter(None, [*notes, report.notes])))
                        notes = []
                return
            except GroupLostError as error:
                # Waiting again would exceed training.resources_wait_s.
                if failures == config.training.max_failures or error.why.is_resources:
                    raise lost_error(error.why, config, last) from error
                notes.append(f"workers restarted after epoch {last}: {error.why.reason}")
                with log_fields(**names_of(folder, start.attempt)):
                    _log.warning("%s", notes[-1])
    finally:
        if workers is None:
            kept.end()
