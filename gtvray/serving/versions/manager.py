"""The version manager: the endpoint follows a registry's champion without a restart.

A new champion is started as a separate Serve application. Once it is loaded and has reproduced its golden cases, new
requests are routed to it; requests in progress finish on the version that admitted them, which is then removed. If
anything fails, the old version continues to serve, and the new one is rejected with the reason.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from gtvray.errors import FailureError, GtvrayError, NotReadyError, ResourceError
from gtvray.serving.app import build_model_app
from gtvray.serving.arguments import AppArguments
from gtvray.serving.request_log import log_event
from gtvray.serving.scaling import count_replicas
from gtvray.serving.versions.last import Candidate, read_last, write_last
from gtvray.serving.versions.pointer import Pointer, RejectedVersion, ServedVersion, Versions

_START_TIMEOUT_S = 600.0
_POLL_S = 0.2
_DESCRIBE_TIMEOUT_S = 30.0
# Serve chooses at random among idle replicas: the chance that one of them is not reached is negligible.
_CALLS_PER_REPLICA = 40


class VersionManager:
    """Starts, checks and swaps versions.

    Args:
        args: arguments of the application; bundle, digest, golden and version are replaced by those of a version.
        pointer: pointer to the served version, read by the gateways.
        in_use: returns the number of requests in progress on a Serve application.
        on_reject: called with a version that could not be served, and the reason.
        last: file that names the version served last. That version is served if the first champion is rejected, and
            until the registry responds; None serves nothing then.

    Attributes:
        prefix: prefix of the names of the Serve applications.
    """

    prefix = "gtvray"

    def __init__(
        self,
        args: AppArguments,
        pointer: Pointer,
        in_use: Callable[[str], int],
        on_reject: Callable[[Candidate, str], None] = lambda *_: None,
        last: Path | None = None,
    ) -> None:
        self._last = last
        self._args, self._pointer, self._in_use, self._on_reject = args, pointer, in_use, on_reject
        self._versions = pointer.read()
        self._started = 0
        self._served = read_last(last) if last is not None else None
        self._rejected: Candidate | None = None
        self._undeleted: list[str] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def follow(self, find: Callable[[], Candidate | None], every_s: float) -> None:
        """Serve what `find` returns, now and whenever it returns another version, until `stop`.

        Args:
            find: returns the champion, fetched and verified; None before the first promotion.
            every_s: seconds between two calls.
        """
        self._thread = threading.Thread(target=self._follow, args=(find, every_s), name="versions", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop following; a swap in progress is completed or aborted."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(30)

    @property
    def versions(self) -> Versions:
        """The served version, the one being loaded, and those that were rejected."""
        return self._versions

    def require_hopeful(self) -> None:
        """Check that a version is served, is being started, or may still be found.

        Raises:
            FailureError: the first version cannot be served.
        """
        versions = self._versions
        if versions.current is None and versions.loading is None and versions.rejected:
            raise FailureError("the model could not be started", found=versions.rejected[-1].reason)

    def swap(self, candidate: Candidate) -> None:
        """Serve a version instead of the current one.

        Raises:
            GtvrayError: it cannot be served, and is rejected. The current version stays in service, or is started again
                if it had to be stopped first.
            Exception: Ray or Serve failed, which is no fault of the version: it is not rejected.
        """
        old = self._versions.current
        new = self._named(candidate)
        self._update(loading=new)
        try:
            interrupt = self._require_resources()
        except Exception:
            self._update(loading=None)
            raise
        try:
            if interrupt and old is not None:
                self._drain(old)
                self._update(current=None)
            self._start(new, candidate)
        except Exception as error:
            self._delete(new.app)
            if isinstance(error, GtvrayError):
                self._reject(candidate, error)
            self._restore()
            raise
        self._rejected, self._served = None, candidate
        self._update(current=new, loading=None)
        log_event("swapped", "versions", version=new.version)
        if old is not None and not interrupt:
            self._drain(old)
        if self._last is not None:
            write_last(self._last, candidate)

    def _follow(self, find: Callable[[], Candidate | None], every_s: float) -> None:
        while True:
            try:
                self._step(find)
            except GtvrayError as error:
                log_event("not_followed", "versions", logging.ERROR, kind=type(error).__name__)
                self._update(problem=error.what)
            except Exception as error:  # noqa: BLE001  # the served version stays, and the next check may succeed
                log_event("not_followed", "versions", logging.ERROR, trace=error, kind=type(error).__name__)
                self._update(problem=f"the cluster or the registry does not answer: {type(error).__name__}")
            if self._stop.wait(every_s):
                return

    def _step(self, find: Callable[[], Candidate | None]) -> None:
        try:
            found = find()
        except ResourceError:
            # At a start while the registry is away, as after a power failure: the version served last was checked.
            self._restore()
            raise
        self._delete_leftovers()
        if self._versions.problem:
            self._update(problem="")
        current = self._versions.current
        # A rejected version is tried again only after another one, or from other files.
        if found is None:
            return
        if found == self._rejected:
            self._restore()
        elif current is None or current.digest != found.digest:
            self.swap(found)

    def _named(self, candidate: Candidate) -> ServedVersion:
        # A version can come back by a rollback while its former application is still being removed.
        self._started += 1
        # Two models may have the same bundle.
        model = hashlib.sha256(self._args.model_name.encode()).hexdigest()[:6]
        app = f"{self.prefix}-{model}-{candidate.digest[:12]}-{self._started}"
        return ServedVersion(app, candidate.version, candidate.digest)

    def _require_resources(self) -> bool:
        """Return whether the old version must be stopped before the new one is started.

        Raises:
            ResourceError: both do not fit, and interruptions are not permitted.
        """
        serving = self._args.serving
        needed = {
            "CPU": serving.initial_replicas * serving.cpus_per_replica,
            "GPU": serving.initial_replicas * serving.gpus_per_replica,
            "memory": serving.initial_replicas * serving.memory_gb_per_replica * 1e9,
        }
        if self._versions.current is None or not (lacking := missing_resources(needed)):
            return False
        if not serving.interrupt_to_swap:
            raise ResourceError(
                "a new version does not fit on the cluster alongside the served version",
                **lacking,
                do="use fewer or smaller replicas, or set serving.interrupt_to_swap=true",
            )
        return True

    def _start(self, new: ServedVersion, candidate: Candidate) -> None:
        """Start a version and wait until it is loaded and reproduces its golden cases."""
        changes = {
            "bundle": candidate.bundle,
            "digest": candidate.digest,
            "golden": candidate.golden,
            "version": candidate.version,
            "override": candidate.override,
        }
        application = self._application(self._args.model_copy(update=changes))
        target = serve.RunTarget(application, name=new.app, route_prefix=None)
        serve.run_many([target], wait_for_applications_running=False)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._stop.is_set():
            status = serve.status().applications.get(new.app)
            if status is not None and status.status == ApplicationStatus.RUNNING:
                require_reproduced(new.app)
                return
            if status is not None and status.status == ApplicationStatus.DEPLOY_FAILED:
                raise FailureError("the model could not be started", found=status_text(status))
            if time.monotonic() > deadline:
                raise NotReadyError("the model is not ready", expected=f"within {_START_TIMEOUT_S:g} s")
            time.sleep(_POLL_S)
        raise NotReadyError("the endpoint is stopping")

    def _application(self, args: AppArguments) -> Any:
        return build_model_app(args)

    def _restore(self) -> None:
        """If no version is served, start the one that was served last: stopped for a swap, or before a restart."""
        last, rejected = self._served, self._rejected
        same = last is not None and rejected is not None and last.digest == rejected.digest
        if last is None or same or self._versions.current is not None or self._stop.is_set():
            self._update(loading=None)
            return
        again = self._named(last)
        self._update(loading=again)
        try:
            self._start(again, last)
        except Exception:
            self._delete(again.app)
            self._update(loading=None)
            raise
        self._update(current=again, loading=None)

    def _drain(self, old: ServedVersion) -> None:
        """Remove a version once the requests that it admitted have ended, or after the endpoint's time limit.

        Volumes of jobs have no time limit; those still in progress are retried on the new version.
        """
        deadline = time.monotonic() + self._args.serving.timeout_s + 5
        # The API may have read the pointer just before it changed.
        time.sleep(_POLL_S)
        while time.monotonic() < deadline and not self._stop.is_set() and self._in_use(old.app):
            time.sleep(_POLL_S)
        self._delete(old.app)

    def _delete(self, app: str) -> None:
        """Delete an application; if Serve does not respond, the next check deletes it."""
        try:
            serve.delete(app, _blocking=False)
        except Exception as error:  # noqa: BLE001  # must not hide the reason of the deletion, nor end the swap
            log_event("not_deleted", "versions", logging.ERROR, kind=type(error).__name__)
            self._undeleted.append(app)

    def _delete_leftovers(self) -> None:
        leftovers, self._undeleted = self._undeleted, []
        for app in leftovers:
            self._delete(app)

    def _reject(self, candidate: Candidate, error: GtvrayError) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        rejected = RejectedVersion(candidate.version, candidate.digest, str(error).replace("\n", ";"), at)
        self._rejected = candidate
        log_event("rejected", "versions", logging.ERROR, version=candidate.version, kind=type(error).__name__)
        try:
            self._on_reject(candidate, rejected.reason)
        except Exception as failed:  # noqa: BLE001  # an unreachable registry must not stop the endpoint
            log_event("rejection_not_recorded", "versions", logging.ERROR, kind=type(failed).__name__)
        self._update(rejected=(*self._versions.rejected, rejected))

    def _update(self, **changes: Any) -> None:
        versions: Versions = replace(self._versions, **changes)
        if versions != self._versions:
            self._versions = versions
            self._pointer.write(versions)


def missing_resources(needed: Mapping[str, float]) -> dict[str, str]:
    """Return the resources that are not free on the cluster, as fields of an error; empty if all are free."""
    free = ray.available_resources()
    lacking = [name for name, amount in needed.items() if amount > free.get(name, 0.0) + 1e-6]
    if not lacking:
        return {}
    return {
        "expected": ", ".join(f"{name} {needed[name]:g}" for name in lacking),
        "found": ", ".join(f"{name} {free.get(name, 0.0):g} free" for name in lacking),
    }


def status_text(status: ApplicationStatusOverview) -> str:
    """Return the end of Serve's status message of an application on one line, or else the states of its replicas."""
    message = " ".join(line for line in status.message.splitlines() if line.strip())[-250:]
    deployments = []
    for name, deployment in status.deployments.items():
        replicas = [f"{count} {state.lower()}" for state, count in deployment.replica_states.items() if count]
        if replicas:
            deployments.append(f"{name} {deployment.status.lower()} ({', '.join(replicas)})")
    return message or "; ".join(deployments) or status.status.lower()


def require_reproduced(app: str) -> None:
    """Check that every replica of a version responds and has reproduced its golden cases.

    Serve routes a call to any replica, so calls are repeated until all have answered.

    Raises:
        NotReproducedError: a replica has not reproduced them, possibly on other hardware than the others.
        FailureError: a replica failed, or not all of them were reached.
        NotReadyError: a replica does not answer.
    """
    counts = count_replicas(app)
    # A model that scales to zero may have no replica; a call starts one.
    running = max(counts.running, 1) if counts is not None else 1
    model, reached = serve.get_app_handle(app), set[str]()
    try:
        for _ in range(_CALLS_PER_REPLICA * running):
            reached.add(model.reproduced.remote().result(timeout_s=_DESCRIBE_TIMEOUT_S))
            if len(reached) >= running:
                return
    except RayTaskError as error:
        if isinstance(error.cause, GtvrayError):
            raise error.cause from None
        raise FailureError("the model could not be started", found=type(error.cause).__name__) from error
    except TimeoutError as error:
        raise NotReadyError("the model does not answer", expected=f"within {_DESCRIBE_TIMEOUT_S:g} s") from error
    raise FailureError("not every replica of the model answers", expected=f"{running}", found=f"{len(reached)}")
