"""Reading training batches ahead of the steps that use them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from gtvray.data import PatchSampler

# More threads than this decompress patches faster than any GPU trains on them.
_MOST_THREADS = 4


class Batch(NamedTuple):
    """A batch on the training's device.

    Attributes:
        images: channels (b, c, i, j, k) float32.
        masks: (b, 1, i, j, k) float32.
        waited_s: seconds that the caller waited for it.
    """

    images: Tensor
    masks: Tensor
    waited_s: float


class BatchReader:
    """Reads batches in threads, a few ahead, and puts them on the training's device.

    Which patches a batch holds follows from its sample numbers alone, so neither the device nor the number of threads
    changes it. On a GPU the threads share a CUDA stream of their own: copies from pinned memory and augmentation run
    beside the steps of the default stream instead of queueing behind them.

    Args:
        sampler: makes the patches, on the CPU or on `device`.
        device: where batches are needed.
        threads: CPU threads of the worker; on a CPU one thread reads, since the steps use the CPU as well.
    """

    def __init__(self, sampler: PatchSampler, device: torch.device, threads: int) -> None:
        self._sampler, self._device = sampler, device
        on_gpu = device.type == "cuda"
        self._ahead = min(threads, _MOST_THREADS) if on_gpu else 1
        self._stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._pool = ThreadPoolExecutor(self._ahead, thread_name_prefix="reader")

    def __enter__(self) -> BatchReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def batches(self, numbers: Callable[[int], range], steps: range) -> Iterator[Batch]:
        """Read the batch of each step, in order.

        Args:
            numbers: global sample numbers of a step.
            steps: consecutive step numbers.
        """
        upcoming = iter(steps)
        pending: deque[Future[_Read]] = deque()
        try:
            for step in upcoming:
                pending.append(self._pool.submit(self._read, numbers(step)))
                if len(pending) > self._ahead:
                    yield self._receive(pending.popleft())
            while pending:
                yield self._receive(pending.popleft())
        finally:
            for future in pending:
                future.cancel()

    def _read(self, numbers: range) -> _Read:
        with self._on_stream():
            images, masks = (self._placed(each) for each in self._sampler.batch(numbers))
            return _Read(images, masks, self._stream.record_event() if self._stream is not None else None)

    def _on_stream(self) -> AbstractContextManager[object]:
        if self._stream is None:
            return nullcontext()
        # The current device is a thread's own.
        stack = ExitStack()
        stack.enter_context(torch.cuda.device(self._device))
        stack.enter_context(torch.cuda.stream(self._stream))
        return stack

    def _placed(self, tensor: Tensor) -> Tensor:
        if tensor.device == self._device:
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def _receive(self, future: Future[_Read]) -> Batch:
        asked = time.perf_counter()
        images, masks, ready = future.result()
        if ready is not None:
            ready.synchronize()
            # Allocated on the reader's stream: its memory must not be handed out again before the step has used it.
            for each in (images, masks):
                each.record_stream(torch.cuda.current_stream(self._device))
        return Batch(images, masks, time.perf_counter() - asked)


class _Read(NamedTuple):
    images: Tensor
    masks: Tensor
    ready: torch.cuda.Event | None
