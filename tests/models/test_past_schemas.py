"""Bundles that earlier versions wrote are read, or refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from gtvray.models import Bundle, verify_digest
from gtvray.models.bundle import SCHEMA_VERSION

ASSETS = Path(__file__).resolve().parents[1] / "assets"
STORED = sorted(ASSETS.glob("bundle-schema-*"))


def test_the_current_schema_is_stored() -> None:
    assert f"bundle-schema-{SCHEMA_VERSION}" in [folder.name for folder in STORED], "run tests/assets/make_bundle.py"


@pytest.mark.parametrize("folder", STORED, ids=lambda folder: folder.name)
def test_stored_bundle_is_read(folder: Path) -> None:
    bundle = Bundle.load(folder)
    assert bundle.digest == verify_digest(folder)
    assert re.fullmatch(r"[0-9a-f]{64}", bundle.digest)
    assert (bundle.patch_ijk, bundle.preprocessing.spacing_mm) == ((16, 16, 16), (4.0, 4.0, 4.0))
    network = bundle.build_network(0)
    with torch.no_grad():
        logits = network.eval()(torch.zeros(1, 1, 16, 16, 16))
    assert logits.shape == (1, 1, 16, 16, 16)
    assert bool(torch.isfinite(logits).all())
