"""The Model deployment of a shadow version: it yields every CPU to the processes of the served one."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from gtvray.failpoints import failpoint
from gtvray.serving.arguments import AppArguments
from gtvray.serving.replica.deployment import Model
from gtvray.serving.transfer.work import Answer, Work

if TYPE_CHECKING:
    from gtvray.inference import SegmentationRequest


class ShadowModel(Model):
    """A model whose threads yield to all others.

    Args:
        args: the application's arguments.

    Raises:
        as `Model`.
    """

    def __init__(self, args: AppArguments) -> None:
        # Ray gives all its workers niceness 15, against which 19 would leave the shadow 29 % of a CPU (sched(7)). The
        # policy is that of this thread, and inherited by the threads that prepare and infer, which it starts. Threads
        # of Ray keep theirs: a replica in which they do not answer would be taken for dead.
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        super().__init__(args)

    async def predict(
        self, work: Work, request_id: str, started: Callable[[SegmentationRequest], None] | None = None
    ) -> Answer:
        """As `Model.predict`."""
        failpoint("serving.shadow")
        return await super().predict(work, request_id, started)
