"""The lease of a registered model: at most one process, on any host, changes its champion at a time.

MLflow's aliases and tags are last-write-wins and exclude nobody, but a registered model of a given name can be created
only once. A process acquires the lease by creating the registered model `MODEL.lease.NUMBER`, where NUMBER follows the
highest existing one. The highest is never removed, so numbers increase monotonically and also order the decisions that
are made under them, independent of any clock. If it is deleted in MLflow, numbering continues above the last decision.

The holder renews the lease by incrementing a tag. Another process takes over if the tag has not changed for the expiry
time, measured with its own clock, or immediately if the holder ran on the same host and has ended. A holder that was
suspended for longer than that finds a higher number before it changes anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gtvray.errors import ResourceError
from gtvray.tracking import filter_text

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPIRY_S = 30.0
_RENEWAL_S = 5.0
_POLL_S = 0.5
_HOLDER_TAG, _RENEWALS_TAG, _RELEASED_TAG = "gtvray.holder", "gtvray.renewals", "gtvray.released"
_DESCRIPTION = "Lock that gtvray uses while it changes the champion; not a model. Do not delete the newest one."
# CLOCK_BOOTTIME includes the time that the host is suspended.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


@dataclass(frozen=True)
class Holder:
    """The process that holds a lease.

    Attributes:
        by: name of the person or account.
        host: name of its host.
        machine: identifies the running system and process namespace; empty if unknown.
        pid: process id within that namespace.
        started: start time of the process in clock ticks since boot, since process ids are reused.
    """

    by: str
    host: str
    machine: str
    pid: int
    started: str

    @classmethod
    def this_process(cls, by: str) -> Holder:
        """Describe the calling process."""
        return cls(by, socket.gethostname(), _machine(), os.getpid(), _started(os.getpid()))

    @property
    def has_ended(self) -> bool:
        """Whether the process is known to have ended; False for a process of another host."""
        return bool(self.machine) and self.machine == _machine() and _started(self.pid) != self.started

    def __str__(self) -> str:
        """Format the process for messages."""
        return f"{self.by}, process {self.pid} on {self.host}"


class Lease:
    """A held lease.

    Args:
        client: client of the MLflow store.
        model: name of the registered model.
        number: number of the lease.
        holder: this process.
        expiry_s: seconds without a renewal after which others may take over.
    """

    def __init__(self, client: MlflowClient, model: str, number: int, holder: Holder, expiry_s: float) -> None:
        self.number = number
        self._client, self._model, self._holder, self._expiry_s = client, model, holder, expiry_s
        self._name, self._renewed_at = _name(model, number), _now()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def require_held(self) -> None:
        """Check that no other process can have taken over; call it immediately before a change.

        Raises:
            ResourceError: the lease was lost.
        """
        newest = _newest(self._client, self._model)
        idle_s = _now() - self._renewed_at
        # If the lease was deleted, another process may have created it again under the same number.
        ours = newest is not None and (newest.number, newest.holder) == (self.number, self._holder)
        if not ours or idle_s > self._expiry_s / 2:
            found = f"lease {newest.number}, {newest.holder}" if newest is not None else "no lease"
            raise ResourceError(
                "the right to change the champion was lost",
                where=self._model,
                expected=f"lease {self.number}, renewed within {self._expiry_s / 2:.0f} s",
                found=f"{found}; last renewal {idle_s:.0f} s ago",
                do="run the command again; the champion was not changed by this one",
            )

    def release(self) -> None:
        """Release the lease; if MLflow is unreachable, it expires."""
        self._ended.set()
        self._thread.join(_RENEWAL_S)
        with contextlib.suppress(Exception):
            self._client.set_registered_model_tag(self._name, _RELEASED_TAG, "true")

    def _renew(self) -> None:
        count = 0
        while not self._ended.wait(min(_RENEWAL_S, self._expiry_s / 6)):
            count += 1
            # A failed renewal is repeated; `require_held` notices when none has succeeded for too long.
            with contextlib.suppress(Exception):
                self._client.set_registered_model_tag(self._name, _RENEWALS_TAG, str(count))
                self._renewed_at = _now()


@contextmanager
def hold_lease(
    client: MlflowClient,
    model: str,
    holder: Holder,
    waiting: Callable[[str], None] = lambda _: None,
    *,
    expiry_s: float = EXPIRY_S,
    above: int = 0,
) -> Iterator[Lease]:
    """Hold the lease of a registered model in the `with` block; wait while another process has it.

    Args:
        client: client of the MLflow store.
        model: name of the registered model, which need not exist.
        holder: this process.
        waiting: called once with the holder that is waited for.
        expiry_s: seconds without a renewal after which another process's lease is taken over.
        above: the number of the lease will be higher than this one.
    """
    number = _acquire(client, model, holder, waiting, expiry_s=expiry_s, above=above)
    lease = Lease(client, model, number, holder, expiry_s)
    try:
        yield lease
    finally:
        lease.release()


@dataclass(frozen=True)
class _Entry:
    """An existing lease: its number, tags and holder."""

    number: int
    tags: Mapping[str, str]

    @property
    def holder(self) -> Holder | None:
        try:
            return Holder(**json.loads(self.tags[_HOLDER_TAG]))
        except (KeyError, TypeError, ValueError):
            return None

    @property
    def is_free(self) -> bool:
        holder = self.holder
        return _RELEASED_TAG in self.tags or (holder is not None and holder.has_ended)


def _acquire(
    client: MlflowClient, model: str, holder: Holder, waiting: Callable[[str], None], *, expiry_s: float, above: int
) -> int:
    seen, since, announced = None, _now(), False
    while True:
        current = _newest(client, model)
        state = current and (current.number, current.tags.get(_RENEWALS_TAG))
        if state != seen:
            seen, since = state, _now()
        if current is None or current.is_free or _now() - since > expiry_s:
            number = max(above, current.number if current else 0) + 1
            if _create(client, model, number, holder):
                return number
            continue
        if not announced:
            waiting(str(current.holder or "another process"))
            announced = True
        time.sleep(_POLL_S)


def _create(client: MlflowClient, model: str, number: int, holder: Holder) -> bool:
    """Create the lease of a number; False if another process was first."""
    from mlflow.exceptions import MlflowException

    try:
        tags = {_HOLDER_TAG: json.dumps(asdict(holder))}
        client.create_registered_model(_name(model, number), tags=tags, description=_DESCRIPTION)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return False
    entries = _entries(client, model)
    highest = max(entry.number for entry in entries)
    # A name is free again after the leases that followed it were removed; only the highest number counts.
    for entry in entries:
        if entry.number < highest:
            with contextlib.suppress(MlflowException):
                client.delete_registered_model(_name(model, entry.number))
    return highest == number


def _newest(client: MlflowClient, model: str) -> _Entry | None:
    return max(_entries(client, model), key=lambda entry: entry.number, default=None)


def _entries(client: MlflowClient, model: str) -> list[_Entry]:
    prefix = _name(model, "")
    text = filter_text(prefix)
    entries: list[_Entry] = []
    token: str | None = None
    while True:
        page = client.search_registered_models(text and f"name LIKE '{prefix}%'", page_token=token)
        for found in page:
            number = found.name.removeprefix(prefix)
            if number != found.name and number.isdecimal():
                entries.append(_Entry(int(number), found.tags))
        token = page.token
        if not token:
            return entries


def _name(model: str, number: int | str) -> str:
    return f"{model}.lease.{number}"


def _now() -> float:
    return time.clock_gettime(_CLOCK)


def _machine() -> str:
    """Identify the running system and the namespace of process ids, since containers number their own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return the start time of a process in clock ticks since boot; empty if it has ended."""
    try:
        # The name of the command, in parentheses, may contain spaces.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state == "Z" else fields[18]
