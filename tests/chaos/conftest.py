"""Fixtures of the training tests, for fault injection."""

from __future__ import annotations

from ..training.conftest import cases, config, selection, train

__all__ = ["cases", "config", "selection", "train"]
