"""A shadow version on a real endpoint: the answers are the champion's, whatever happens to the shadow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gtvray.failpoints import ONCE_VARIABLE, VARIABLE


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_shadow_is_compared_dies_and_ends_without_touching_a_request(tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("shadowed_endpoint.py"))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {VARIABLE: "serving.shadow:2=kill", ONCE_VARIABLE: str(tmp_path)}
    subprocess.run([sys.executable, script, str(tmp_path / "found")], env=environment, timeout=380, check=True)
    found = json.loads((tmp_path / "found").read_text())
    assert all(found["right"]), "every answer is the mask of the served version"
    # It reserves no CPU: a second version of half a CPU fits beside it on one CPU.
    assert found["idle"]["shadow"] > 0
    assert found["idle"]["served"] == 0
    assert (found["killed"]["compared"], found["killed"]["failed"]) == (1, 1)
    assert 0 < found["dice"]["small"] < 1
    assert found["delivered"][0] == found["dice"]["small"]
    assert found["delivered"][1] == found["dice"]["large"]
    assert set(found["delivered"]) <= set(found["dice"].values())
    # A comparison that is dropped while its record is being written is in the file.
    assert len(found["delivered"]) >= found["busy"]["compared"]
    assert found["busy"]["dropped"] > 0, "not all concurrent requests are compared"
    assert found["promoted"]["current"] is None
