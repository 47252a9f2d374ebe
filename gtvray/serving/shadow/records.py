"""Records of comparisons: JSON Lines files that gateways append to, and the thread that delivers them.

The files are the queues of `gtvray.tracking.MetricQueue`: each record is delivered at least once, in order, even if
MLflow is unavailable for days or every process is killed.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from gtvray.serving.request_log import log_event
from gtvray.tracking import MetricQueue, Rejection

Deliver = Callable[[list[dict[str, Any]]], list[Rejection]]
_LAST_TRY_S = 2.0


def record_file(versions: Path) -> Path:
    """The file that this host's gateways append to; its folder is beside the file that names the shadow version."""
    return _folder(versions) / f"{socket.gethostname()}.jsonl"


def record_files(versions: Path) -> list[Path]:
    """The files of all hosts; those of a queue's rejected entries are beside them."""
    return sorted(path for path in _folder(versions).glob("*.jsonl") if not path.name.endswith(".rejected.jsonl"))


def shadow_metrics(record: Mapping[str, Any]) -> tuple[dict[str, float], int, int]:
    """Return what MLflow records of a comparison: metrics, step (its number), and Unix time in milliseconds.

    The metric names contain the served version, as the champion may change.
    """
    against = f"shadow/version_{record['version']['served']}"
    metrics = {
        f"{against}/dice": record["dice"],
        f"{against}/volume_difference_ml": record["volume_ml"]["shadow"] - record["volume_ml"]["served"],
    }
    return metrics, record["number"], int(datetime.fromisoformat(record["at"]).timestamp() * 1000)


def summarise_shadow(records: Iterable[Mapping[str, Any]], digest: str) -> str:
    """Summarise the comparisons of a candidate in one line: count, mean and minimum Dice for each served version.

    Args:
        records: records of any candidates.
        digest: digest of the candidate's bundle.
    """
    dice_of: dict[str, list[float]] = {}
    for record in records:
        # A line that was damaged is set aside by the queue.
        if record.get("digest", {}).get("shadow") == digest:
            dice_of.setdefault(record["version"]["served"], []).append(record["dice"])
    return "; ".join(
        f"version {served}: {len(dice)} scans, mean Dice {fmean(dice):.4f}, smallest {min(dice):.4f}"
        for served, dice in dice_of.items()
    )


class RecordSender:
    """A thread that delivers the records of all hosts.

    Args:
        versions: the file that names the shadow version.
        deliver: as in `MetricQueue`.
        every_s: seconds between two checks for new records.
    """

    def __init__(self, versions: Path, deliver: Deliver, every_s: float) -> None:
        self._versions, self._deliver, self._every_s = versions, deliver, every_s
        self._queues: dict[Path, MetricQueue] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shadow-records", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Deliver pending records and stop; records that cannot be delivered now are left to the next sender."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            stopping = self._stop.wait(self._every_s)
            try:
                for path in record_files(self._versions):
                    if path not in self._queues:
                        self._queues[path] = MetricQueue(path, self._deliver)
                    self._queues[path].flush(_LAST_TRY_S if stopping else 0.0)
            except OSError as error:
                log_event("shadow_not_recorded", "versions", logging.ERROR, kind=type(error).__name__)
            if stopping:
                break
        for queue in self._queues.values():
            queue.close(0.0)


def _folder(versions: Path) -> Path:
    return versions.with_suffix("")
