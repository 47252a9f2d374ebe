"""The small training of the training room's tests, to be disturbed."""

from __future__ import annotations

from ..training.conftest import cases, config, selection, train

__all__ = ["cases", "config", "selection", "train"]
