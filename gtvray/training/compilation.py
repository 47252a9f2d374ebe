"""Compilation of the network of a training, with a logged fallback to eager execution."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec
from typing import Literal, TypeVar

import torch

from gtvray.config import Config
from gtvray.models import loss_reduction
from gtvray.training.execution import micro_batch_size, training_precision
from gtvray.training.memory import planned_cost

Mode = Literal["default", "reduce-overhead"]
T = TypeVar("T")

# A forward and backward pass of so few operations takes a data-centre GPU about two milliseconds (at a tenth of its
# peak), less than Python and the driver need to launch its kernels one by one. An estimate: not measured on a GPU yet.
_SHORT_PASS_FLOPS = 2e11
# Compiling takes about a minute, which a training with fewer steps or less time does not recover.
_WORTHWHILE_STEPS, _WORTHWHILE_S = 2000, 600.0
# A training step takes about three times the operations of a forward pass.
_TRAINING_FACTOR = 3
_COMPILERS = ("torch._dynamo", "torch._inductor", "triton")
# Errors of capturing and replaying a CUDA graph are plain RuntimeErrors.
_CUDA_GRAPHS = ("CUDAGraph", "stream is capturing", "stream capture")
_log = logging.getLogger(__name__)


def compile_mode(config: Config) -> Mode | None:
    """The mode in which `torch.compile` compiles the network; None is eager execution.

    "reduce-overhead" replays CUDA graphs, which helps where a pass is shorter than the launch of its kernels. `auto`
    compiles long trainings on a GPU with Triton only: on a CPU, compiling takes longer than it saves in a trial.
    """
    training = config.training
    if training.compile == "off":
        return None
    if training.compile == "on":
        return "default"
    if training.compile == "auto" and not (training.use_gpu and find_spec("triton") is not None and _is_long(config)):
        return None
    if not training.use_gpu or not _one_pass_at_a_time(config):
        return "default"
    if training.compile == "graphs":
        return "reduce-overhead"
    flops = planned_cost(config).flops_per_patch * micro_batch_size(config) * _TRAINING_FACTOR
    return "reduce-overhead" if flops < _SHORT_PASS_FLOPS else "default"


def prefers_channels_last(config: Config) -> bool:
    """Whether the network's tensors lie in memory with the channels innermost.

    Tensor cores convolve 16-bit data in that layout; with channels outermost cuDNN reorders every input and output. In
    eager execution torch's instance normalisation copies its input back to channels outermost, which takes away what
    the convolutions win; compiled, it is generated code that reads either layout.
    """
    half = config.training.use_gpu and training_precision(config) != torch.float32
    return half and compile_mode(config) is not None


class CompiledNetwork:
    """A network that is compiled at its first pass, or runs eagerly when that fails.

    Args:
        config: decides whether and how.
        network: compiled in place, so parameters and names stay.
    """

    def __init__(self, config: Config, network: torch.nn.Module) -> None:
        self._network = network
        self.mode = compile_mode(config)
        if self.mode is None:
            return
        # A process may run many trials. Dynamo counts recompilations by code, not by network, and after eight of them
        # it would run every later network eagerly.
        torch.compiler.reset()
        # Patches have one size: static shapes give the fastest code and are what CUDA graphs need.
        network.compile(dynamic=False, mode=None if self.mode == "default" else self.mode)

    def __call__(self, patches: torch.Tensor) -> torch.Tensor:
        """The network's logits."""
        if self.mode == "reduce-overhead":
            # The gradients of the previous replay have been accumulated, so its memory may be overwritten.
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        logits: torch.Tensor = self._network(patches)
        return logits

    def zero_grad(self) -> None:
        """Drop the parameters' gradients."""
        self._network.zero_grad(set_to_none=True)

    def run(self, passes: Callable[[], T]) -> T:
        """Run forward and backward passes; where compiled code fails, log why and run them again eagerly.

        Args:
            passes: calls this network; running it twice has the effect of running it once.

        Raises:
            Exception: an error of `passes` in eager execution, or an out-of-memory error.
        """
        try:
            return passes()
        except Exception as error:
            if self.mode is None or not _is_compilation(error):
                raise
            lines = str(error).strip().splitlines()
            reason = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
            _log.warning("the network cannot be compiled and runs eagerly: %s", reason)
            # `Module.compile` sets only this attribute.
            self._network._compiled_call_impl = None
            self.mode = None
            return passes()


def _is_long(config: Config) -> bool:
    """Return whether a training runs long enough for compiling to pay off."""
    training = config.training
    if training.time_budget_s:
        return training.time_budget_s >= _WORTHWHILE_S
    return training.epochs * training.steps_per_epoch >= _WORTHWHILE_STEPS


def _one_pass_at_a_time(config: Config) -> bool:
    """Whether each forward pass is followed by its own backward pass, as replaying CUDA graphs needs."""
    share = config.training.batch_size // config.training.num_workers
    return loss_reduction(config.loss) != "global" or micro_batch_size(config) >= share


def _is_compilation(error: Exception) -> bool:
    """Whether an error comes from compiling or replaying, and not from the network itself."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    modules = [each.__module__ for each in type(error).__mro__]
    return any(name.startswith(_COMPILERS) for name in modules) or any(words in str(error) for words in _CUDA_GRAPHS)
