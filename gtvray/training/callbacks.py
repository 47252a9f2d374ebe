"""Callbacks of Ray Train for a group of workers.

The group's controller unpickles them: this module does not import torch and MONAI for it.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerCallback

from gtvray.runtime import bind_to_interface


class Registration(ControllerCallback):  # type: ignore[misc]  # Ray ships no types
    """Registers with the mailbox the actor that creates the placement group of the workers."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def after_controller_start(self, train_run_context: Any) -> None:  # noqa: ARG002  # Ray Train passes it
        """Register the actor in which this runs."""
        ray.get(self._mailbox.set_controller.remote(ray.get_runtime_context().current_actor))


class Binding(WorkerCallback):  # type: ignore[misc]
    """Binds each worker to the network interface of its Ray node, before the workers connect to each other."""

    def after_init_train_context(self) -> None:
        """Bind the worker in which this runs."""
        bind_to_interface(ray.util.get_node_ip_address())
