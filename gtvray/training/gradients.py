"""The gradient of a step: the mean over the patches of all workers, independent of their distribution over workers.

A batch goes through the network in micro-batches. Their gradients are added up in double precision, over a worker's
micro-batches and then over workers, and rounded once, so the result does not depend on the order of summation, which
differs with the number of workers. In single precision it does, in the last bit, and a training multiplies such a
difference by ten every ten to twenty steps. See docs/decisions/0013-exact-over-workers.md.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.distributed as dist

from gtvray.config import Config
from gtvray.failpoints import failpoint
from gtvray.models import build_loss, loss_reduction
from gtvray.training.compilation import CompiledNetwork
from gtvray.training.execution import micro_batch_size, rank, training_precision


class Gradients:
    """Computes the gradients of a network's parameters.

    Args:
        config: loss, precision, batch, micro-batch and compilation.
        network: its parameters receive the gradients; compiled in place where the config asks for it.
        scaler: multiplies losses before the backward pass; enabled for fp16 only.
    """

    def __init__(self, config: Config, network: torch.nn.Module, scaler: torch.amp.GradScaler) -> None:
        self._network, self._scaler = CompiledNetwork(config, network), scaler
        self._training = config.training
        self._loss = build_loss(config.loss, config.preprocessing.spacing_mm)
        # Such a loss needs all logits before it has a gradient for any, so micro-batches save no memory.
        self._whole_batch = loss_reduction(config.loss) == "global"
        self._dtype = training_precision(config)
        self._micro_batch = micro_batch_size(config)
        self._device = next(network.parameters()).device
        self._total = _Total(network)

    def compute(self, numbers: range, images: torch.Tensor, masks: torch.Tensor, progress: float = 1.0) -> torch.Tensor:
        """Set every parameter's gradient of the mean loss over all workers' patches, times the scaler's factor.

        Args:
            numbers: global sample numbers of this worker's patches.
            images: (b, c, i, j, k) float32.
            masks: (b, 1, i, j, k) float32.
            progress: share of the training that is done, 0..1.

        Returns:
            mean loss over this worker's patches, a float64 scalar on the device: reading it waits for the GPU.
        """
        images, masks = (each.to(self._device, non_blocking=True) for each in (images, masks))
        weight = math.nan if failpoint("training.loss", rank()) else 1.0
        losses = self._network.run(lambda: self._add_up(numbers, images, masks, progress, weight))
        self._total.to_parameters(self._training.batch_size)
        return losses / len(numbers)

    def _add_up(
        self, numbers: range, images: torch.Tensor, masks: torch.Tensor, progress: float, weight: float
    ) -> torch.Tensor:
        """Add the gradients of this worker's patches to the total, which starts at zero; the sum of their losses."""
        losses = torch.zeros((), dtype=torch.float64, device=self._device)
        self._total.begin()
        for group in self._groups(len(numbers)):
            answers = [self._forward(numbers[part], images[part]) for part in group]
            logits = torch.cat([answer.detach() for answer in answers]).requires_grad_()
            together = slice(group[0].start, group[-1].stop)
            loss = self._loss(logits, masks[together], progress) * weight * len(logits)
            losses += loss.detach()
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            for part, answer in zip(group, answers, strict=True):
                self._network.zero_grad()
                first = part.start - together.start
                answer.backward(logits.grad[first : first + len(answer)])  # type: ignore[index, no-untyped-call]
                self._total.add()
        return losses

    def _groups(self, count: int) -> list[list[slice]]:
        """Micro-batches that share a loss: each by itself, or the whole batch."""
        size = self._micro_batch
        parts = [slice(first, min(first + size, count)) for first in range(0, count, size)]
        return [parts] if self._whole_batch else [[part] for part in parts]

    def _forward(self, numbers: range, images: torch.Tensor) -> torch.Tensor:
        # Dropout follows from the sample's number, as its augmentation does, whichever worker it went to.
        torch.manual_seed(_dropout_seed(self._training.seed, numbers[0]))
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            return self._network(images)


class _Total:
    """A sum of gradients in double precision, flat: one exchange for all parameters.

    Its memory stays from step to step. The C library gives blocks of this size back to the kernel, and allocating them
    again costs more than the addition.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        self._parameters = list(network.parameters())
        self._taking_part: list[torch.nn.Parameter] = []
        self._sum = torch.empty(0, dtype=torch.float64)

    def begin(self) -> None:
        """Start at zero."""
        self._taking_part = []

    def add(self) -> None:
        """Add the parameters' gradients."""
        first = not self._taking_part
        if first:
            # DynUNet has heads and blocks that take no part in the forward pass; they keep having no gradient.
            self._taking_part = [each for each in self._parameters if each.grad is not None]
            self._require(sum(each.numel() for each in self._taking_part))
        gradients = [each.grad for each in self._taking_part if each.grad is not None]
        parts = self._parts(self._sum)
        # One kernel for many parameters on a GPU, where launching one for each would take longer than adding.
        if first:
            torch._foreach_copy_(parts, gradients)
        else:
            torch._foreach_add_(parts, gradients)

    def to_parameters(self, patches: int) -> None:
        """Sum over workers and set each parameter's gradient to its part, divided by the patches of all."""
        if dist.is_initialized():
            dist.all_reduce(self._sum)
        for part, each in zip(self._parts(self._sum.div_(patches).float()), self._taking_part, strict=True):
            each.grad = part

    def _require(self, size: int) -> None:
        """Allocate the sum on the parameters' device."""
        if len(self._sum) != size:
            self._sum = torch.empty(size, dtype=torch.float64, device=self._parameters[0].device)

    def _parts(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Views of it with the shapes and strides of the parameters that take part.

        Equal strides keep the optimizer on its fast path when weights lie with channels innermost.
        """
        parts = torch.split(flat, [each.numel() for each in self._taking_part])
        return [part.as_strided(each.shape, each.stride()) for part, each in zip(parts, self._taking_part, strict=True)]


def _dropout_seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence((seed, 4, number)).generate_state(1, np.uint64)[0])
