"""A worker group that fails before any worker runs gtvray's code releases its resources."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gtvray.config import Config, with_dotted
from gtvray.data import CachedCase

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def test_failed_process_group_leaves_no_placement_group(
    config: Config, train: list[CachedCase], selection: list[CachedCase], tmp_path: Path
) -> None:
    """The workers connect through an interface that does not exist, as where a host's name is the loopback's."""
    pair = with_dotted(config, {"training.num_workers": 2, "training.max_failures": 1})
    job = {
        "config": pair.model_dump(mode="json"),
        "train": [[case.case_id, str(case.folder), case.meta] for case in train],
        "selection": [[case.case_id, str(case.folder), case.meta] for case in selection],
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["GLOO_SOCKET_IFNAME"] = "missing0"
    script = str(Path(__file__).with_name("broken_group.py"))
    subprocess.run([sys.executable, script, str(tmp_path)], env=environment, timeout=500, check=True)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["error"].startswith("training on several workers failed")
    assert "after epoch 0 and 1 restarts" in found["error"]
    assert found["standing"] == []
    assert found["orphans"] == 1
