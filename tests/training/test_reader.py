"""Reading ahead: every batch in its order, whatever the number of threads, and nothing left behind."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import islice

import pytest
import torch

from gtvray.config import Config
from gtvray.data import CachedCase, PatchSampler
from gtvray.training.reader import BatchReader

CPU = torch.device("cpu")


class Sampler:
    """Batches that hold their own numbers; counts those in progress."""

    def __init__(self, fail_at: int = -1) -> None:
        self.read: list[int] = []
        self._fail_at = fail_at
        self._lock = threading.Lock()

    def batch(self, numbers: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        with self._lock:
            self.read.append(numbers[0])
        if self._fail_at in numbers:
            raise MemoryError
        return torch.tensor(list(numbers)), torch.zeros(len(numbers))


def pairs(step: int) -> range:
    return range(2 * step, 2 * step + 2)


def reader_of(sampler: Sampler, ahead: int = 1) -> BatchReader:
    reader = BatchReader(sampler, CPU, threads=1)  # type: ignore[arg-type]
    reader._ahead = ahead
    return reader


@pytest.mark.parametrize("ahead", [1, 3, 20])
def test_batches_come_in_the_order_of_steps(ahead: int) -> None:
    sampler = Sampler()
    with reader_of(sampler, ahead) as reader:
        for steps in (range(4, 11), range(11, 12)):
            found = [batch.images.tolist() for batch in reader.batches(pairs, steps)]
            assert found == [list(pairs(step)) for step in steps]


def test_no_batch_is_read_beyond_the_lookahead() -> None:
    sampler = Sampler()
    with reader_of(sampler, ahead=2) as reader:
        assert len(list(islice(reader.batches(pairs, range(10)), 3))) == 3
    assert len(sampler.read) <= 3 + 2


def test_an_error_of_the_reading_thread_is_raised_in_the_step_it_belongs_to() -> None:
    with reader_of(Sampler(fail_at=4), ahead=3) as reader:
        batches = reader.batches(pairs, range(5))
        assert [next(batches).images.tolist() for _ in range(2)] == [[0, 1], [2, 3]]
        with pytest.raises(MemoryError):
            next(batches)


def test_batches_are_those_of_the_sampler(config: Config, train: list[CachedCase]) -> None:
    sampler = PatchSampler(train, config.training, config.preprocessing, config.augmentation)
    with BatchReader(sampler, CPU, threads=4) as reader:
        for step, batch in enumerate(reader.batches(pairs, range(3))):
            images, masks = sampler.batch(pairs(step))
            assert torch.equal(batch.images, images)
            assert torch.equal(batch.masks, masks)
            assert batch.waited_s >= 0
