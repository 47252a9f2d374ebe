"""The gradient of a step: the mean over the patches of all workers, whichever worker had which.

A batch goes through the network in micro-batches. Their gradients are added up in double precision, over a worker's
micro-batches and then over workers, and rounded once: the order of a sum, which differs with the number of workers, no
longer shows in the result. In single precision it does, in the last bit, and a training multiplies such a difference by
ten every ten to twenty steps. See docs/decisions/0013-exact-over-workers.md.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.distributed as dist

from gtvray.config import Config
from gtvray.failpoints import failpoint
from gtvray.models import build_loss, loss_reduction
from gtvray.training.execution import micro_batch_size, training_precision
from gtvray.training.workers import rank


class Gradients:
    """Computes the gradients of a network's parameters.

    Args:
        config: loss, precision, batch and micro-batch.
        network: whose parameters get them.
        scaler: multiplies losses before the backward pass; not enabled but for fp16.
    """

    def __init__(self, config: Config, network: torch.nn.Module, scaler: torch.amp.GradScaler) -> None:
        self._network, self._scaler = network, scaler
        self._training = config.training
        self._loss = build_loss(config.loss, config.preprocessing.spacing_mm)
        # Needs every answer before it has a slope for one: micro-batches then save no memory.
        self._whole_batch = loss_reduction(config.loss) == "global"
        self._dtype = training_precision(config)
        self._micro_batch = micro_batch_size(config)
        self._device = next(network.parameters()).device
        self._total = _Total(network)

    def compute(self, numbers: range, images: torch.Tensor, masks: torch.Tensor, progress: float = 1.0) -> float:
        """Give every parameter the gradient, times the scaler's factor, of the mean loss over all workers' patches.

        Args:
            numbers: global sample numbers of this worker's patches.
            images: (b, c, i, j, k) float32.
            masks: (b, 1, i, j, k) float32.
            progress: share of the training that is done, 0..1.

        Returns:
            mean loss over this worker's patches.
        """
        images, masks = (each.to(self._device, non_blocking=True) for each in (images, masks))
        losses = 0.0
        self._total.begin()
        weight = math.nan if failpoint("training.loss", rank()) else 1.0
        for group in self._groups(len(numbers)):
            answers = [self._forward(numbers[part], images[part]) for part in group]
            logits = torch.cat([answer.detach() for answer in answers]).requires_grad_()
            together = slice(group[0].start, group[-1].stop)
            loss = self._loss(logits, masks[together], progress) * weight * len(logits)
            losses += float(loss.detach())
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            for part, answer in zip(group, answers, strict=True):
                self._network.zero_grad(set_to_none=True)
                first = part.start - together.start
                answer.backward(logits.grad[first : first + len(answer)])  # type: ignore[index, no-untyped-call]
                self._total.add()
        self._total.to_parameters(self._training.batch_size)
        return losses / len(numbers)

    def _groups(self, count: int) -> list[list[slice]]:
        """Micro-batches by what the loss looks at together: each by itself, or the whole batch."""
        size = self._micro_batch
        parts = [slice(first, min(first + size, count)) for first in range(0, count, size)]
        return [parts] if self._whole_batch else [[part] for part in parts]

    def _forward(self, numbers: range, images: torch.Tensor) -> torch.Tensor:
        # What is dropped hangs on the sample, as its augmentation does, and not on which worker it came to.
        torch.manual_seed(_dropout_seed(self._training.seed, numbers[0]))
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            logits: torch.Tensor = self._network(images)
        return logits


class _Total:
    """A sum of gradients in double precision, flat: one exchange for all parameters.

    Its memory stays from step to step. The C library gives blocks of this size back to the kernel, and to be given them
    anew costs more than to add.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        self._parameters = list(network.parameters())
        self._taking_part: list[torch.nn.Parameter] = []
        self._sum = torch.empty(0, dtype=torch.float64)

    def begin(self) -> None:
        """Forget what was added."""
        self._taking_part = []

    def add(self) -> None:
        """Add what a backward pass left."""
        first = not self._taking_part
        if first:
            # DynUNet holds heads and blocks that take no part in the forward; they keep having no gradient.
            self._taking_part = [each for each in self._parameters if each.grad is not None]
            self._require(sum(each.numel() for each in self._taking_part))
        for part, each in zip(self._parts(self._sum), self._taking_part, strict=True):
            assert each.grad is not None
            if first:
                part.copy_(each.grad)
            else:
                part.add_(each.grad)

    def to_parameters(self, patches: int) -> None:
        """Share the sum with the other workers and give each parameter its part, divided by the patches of all."""
        if dist.is_initialized():
            dist.all_reduce(self._sum)
        for part, each in zip(self._parts(self._sum.div_(patches).float()), self._taking_part, strict=True):
            each.grad = part

    def _require(self, size: int) -> None:
        """Have memory for so many figures, where the parameters are."""
        if len(self._sum) != size:
            self._sum = torch.empty(size, dtype=torch.float64, device=self._parameters[0].device)

    def _parts(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Views of it with the shapes of the parameters that take part."""
        parts = torch.split(flat, [each.numel() for each in self._taking_part])
        return [part.view(each.shape) for part, each in zip(parts, self._taking_part, strict=True)]


def _dropout_seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence((seed, 4, number)).generate_state(1, np.uint64)[0])
