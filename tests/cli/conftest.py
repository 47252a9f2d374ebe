"""Fixtures of the command-line tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from .command import TINY_SWEEP


@pytest.fixture(scope="session")
def tiny_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep file whose sweep takes seconds."""
    path = tmp_path_factory.mktemp("sweep") / "tiny.yaml"
    path.write_text(TINY_SWEEP)
    return path
