"""Fixtures every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real volumes, kept beside the repository and never in it."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real volumes are not here (../shared/data)")
    return folder


@pytest.fixture(scope="session")
def real_cases(shared_data: Path) -> Path:
    """Real head-and-neck planning CTs in StructSeg's layout."""
    return shared_data / "openkbp_ptv70" / "train"
