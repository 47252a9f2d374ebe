"""A group of workers of Ray Train that trains one job after another.

Starting a group takes most of the time of a short training, because processes are created and import torch. The group
of a trial is therefore kept for the next trial with the same resources; it exits after a minute without a job.

`TorchTrainer.fit()` blocks, so it runs in a thread. Workers honour a request to stop at the end of an epoch.
Their placement group is removed only after a deadline, or when they have failed: it is found by the group's controller,
which registers before it creates one, because a group may fail before any worker has run our code.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from gtvray.config import Config
from gtvray.errors import GtvrayError
from gtvray.failpoints import variables
from gtvray.runtime import remove_groups_of, remove_orphaned_groups, worker_needs
from gtvray.training.callbacks import Binding, Registration
from gtvray.training.execution import gpus_per_worker
from gtvray.training.fit import EpochReport, fit
from gtvray.training.lost import Lost, lost
from gtvray.training.mailbox import Job, packed, start_mailbox, unpacked
from gtvray.training.memory import host_bytes

# The mailbox answers as soon as there is a report; without one, the driver asks again after this time.
_POLL_S = 2.0
# Interval in seconds for removing groups left by killed trials while a group waits for resources.
_ORPHANS_S = 10.0
_STOP_DEADLINE_S = 60.0
_CONTROLLER_S = 15.0
_HEALTH_CHECK_S = "1"
# Ray's default is unlimited. A group that fails to start is restarted by `fit_distributed`, which limits restarts.
_CONTROLLER_FAILURES = 0


class GroupLostError(Exception):
    """A group ended, and no worker reported an error."""

    def __init__(self, why: Lost) -> None:
        super().__init__(why.reason)
        self.why = why


class Workers:
    """The workers of one driver process: a group that is kept from one training to the next."""

    def __init__(self) -> None:
        self._group: _Group | None = None

    def train(self, job: Job) -> Iterator[EpochReport]:
        """Yield the reports of a job; closing the generator stops it at the end of an epoch and keeps the group.

        Raises:
            GtvrayError: the error of a worker.
            GroupLostError: the group ended without one.
        """
        if self._group is None or not self._group.accepts(job):
            self.end()
            self._group = _Group(job)
        group = self._group
        try:
            yield from group.reports()
        finally:
            if not group.finish():
                self.end()

    def end(self) -> None:
        """End the group, if there is one, and free its resources."""
        group, self._group = self._group, None
        if group is not None:
            group.end()


class _Group:
    """One group of workers, started for its first job."""

    def __init__(self, job: Job) -> None:
        self._resources, self._bytes = _resources(job.config), host_bytes(job.config)
        self._mailbox = start_mailbox()
        # Not awaited: the controller starts at the same time as the mailbox.
        self._mailbox.give.remote(packed(job))
        self._outcome: dict[str, BaseException] = {}
        self._ended = threading.Event()
        self._done = self._failed = False
        arguments = (job, self._mailbox, self._outcome, self._ended)
        self._thread = threading.Thread(target=_run, args=arguments, name="torch-trainer", daemon=True)
        self._thread.start()

    def accepts(self, job: Job) -> bool:
        """Give the group another job; False if it has ended or has other resources."""
        fits = self._resources == _resources(job.config) and self._bytes >= host_bytes(job.config)
        if self._ended.is_set() or not fits or variables():
            return False
        self._done = False
        return bool(ray.get(self._mailbox.give.remote(packed(job))))

    def reports(self) -> Iterator[EpochReport]:
        """Yield every report of the current job; raises as `Workers.train`."""
        looked = time.monotonic()
        while True:
            ended = self._ended.is_set()
            news = ray.get(self._mailbox.take.remote(0.0 if ended else _POLL_S))
            self._done, self._failed = news.is_done, news.failure is not None
            yield from map(unpacked, news.reports)
            if news.failure is not None:
                raise news.failure
            if news.is_done:
                return
            if ended:
                self._failed = True
                error = self._outcome.get("error")
                raise GroupLostError(lost(error) if error else Lost("the group of workers ended")) from error
            if not news.reports and time.monotonic() - looked > _ORPHANS_S:
                remove_orphaned_groups()
                looked = time.monotonic()

    def finish(self) -> bool:
        """Stop the current job at the end of an epoch; False if the group cannot be used again."""
        if self._done or self._failed:
            return self._done
        ray.get(self._mailbox.stop.remote())
        deadline = time.monotonic() + _STOP_DEADLINE_S
        while time.monotonic() < deadline and not self._ended.is_set():
            news = ray.get(self._mailbox.take.remote(_POLL_S))
            if news.is_done or news.failure is not None:
                self._done = news.is_done
                break
        self._failed = not self._done
        return self._done

    def end(self) -> None:
        """End the workers, at once if they have failed, and free their resources."""
        ray.get(self._mailbox.close.remote())
        if not self._failed:
            self._thread.join(_STOP_DEADLINE_S)
        if self._thread.is_alive() or self._failed:
            self._kill()
            self._thread.join(_STOP_DEADLINE_S)
        ray.kill(self._mailbox)

    def _kill(self) -> None:
        """Kill the workers by removing their placement group, and the controller, which may wait for one."""
        controller = ray.get(self._mailbox.controller.remote())
        if controller is None:
            return
        remove_groups_of(controller._actor_id.hex())
        # A controller whose workers have died ends by itself, unless it is waiting for resources.
        self._thread.join(_CONTROLLER_S)
        if self._thread.is_alive():
            ray.kill(controller)
            remove_groups_of(controller._actor_id.hex())


def _resources(config: Config) -> tuple[Any, ...]:
    """What two trainings must have in common to use the same group of workers."""
    training = config.training
    return training.num_workers, training.cpus_per_worker, gpus_per_worker(config), training.collective_timeout_s


def _run(job: Job, mailbox: Any, outcome: dict[str, BaseException], ended: threading.Event) -> None:
    training = job.config.training
    # Read by Ray Train's controller. After its default of 60 s it would retry indefinitely, without giving a reason.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(training.resources_wait_s)
    # The death of a worker and the end of the group are noticed at the next of these.
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = _HEALTH_CHECK_S
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"mailbox": mailbox},
        # Gradients are exchanged between GPUs; scores, means and the request to stop are tensors on the CPU.
        torch_config=TorchConfig(
            backend="cpu:gloo,cuda:nccl" if training.use_gpu else "gloo", timeout_s=training.collective_timeout_s
        ),
        scaling_config=ScalingConfig(
            num_workers=training.num_workers,
            use_gpu=training.use_gpu,
            resources_per_worker=worker_needs(training, host_bytes(job.config)).as_bundle(),
        ),
        run_config=RunConfig(
            name=f"{job.folder.name}-{time.time_ns():x}",
            storage_path=str(job.folder / "ray-train"),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=_CONTROLLER_FAILURES),
            worker_runtime_env={"env_vars": variables()} if variables() else None,
            callbacks=[Registration(mailbox), Binding()],
        ),
    )
    try:
        trainer.fit()
    except BaseException as error:  # noqa: BLE001  # handed to the generator, which raises it
        outcome["error"] = error
    finally:
        ended.set()
        mailbox.end.remote()


def _worker(loop: dict[str, Any]) -> None:
    """Train one job after another on one worker."""
    mailbox, number = loop["mailbox"], 0
    while (content := ray.get(mailbox.job.remote(number))) is not None:
        try:
            _train(unpacked(content), mailbox)
        except GtvrayError as error:
            ray.get(mailbox.fail.remote(error))
            raise
        number += 1
        # No worker may start the next job while another is still in the last collective operation of this one.
        dist.barrier()
        if dist.get_rank() == 0:
            ray.get(mailbox.done.remote())


def _train(job: Job, mailbox: Any) -> None:
    """Train on one worker; after each epoch all workers agree on whether to stop."""
    epochs = fit(job.config, job.train, job.selection, job.folder, start=job.start, known_epoch=job.known_epoch)
    with closing(epochs):  # type: ignore[type-var]
        for report in epochs:
            stop = torch.zeros(1)
            if dist.get_rank() == 0:
                stop += float(ray.get(mailbox.put.remote(packed(report))))
            dist.broadcast(stop, src=0)
            if stop.item():
                return
