"""The small training of the tests of training, to be disturbed."""

from __future__ import annotations

from ..training.conftest import cases, config, selection, train

__all__ = ["cases", "config", "selection", "train"]
