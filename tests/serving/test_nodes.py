"""A node without the token or the bundle is reported before the endpoint is deployed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gtvray.errors import ConfigError
from gtvray.runtime import Cluster
from gtvray.serving.nodes import missing_on_node, require_on_every_node

DIGEST = hashlib.sha256(b"secret").hexdigest()


def test_node_reports_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GTVRAY_TOKEN", "secret")
    assert missing_on_node(DIGEST, None, [tmp_path]) is None
    assert missing_on_node(DIGEST, None, [tmp_path / "gone"]) == f"{tmp_path / 'gone'} is not there"
    monkeypatch.setenv("GTVRAY_TOKEN", "other")
    assert missing_on_node(DIGEST, None, []) == "it has another token"
    assert missing_on_node(DIGEST, tmp_path / "token", []) == "the token file cannot be read"
    monkeypatch.delenv("GTVRAY_TOKEN")
    assert "no token is configured" in str(missing_on_node(DIGEST, None, []))


@pytest.mark.ray
def test_the_node_is_named(local_ray: Cluster, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    require_on_every_node("secret", token, [tmp_path])
    with pytest.raises(ConfigError, match="cannot run on every node") as caught:
        require_on_every_node("secret", token, [tmp_path / "gone"])
    assert local_ray.address.rpartition(":")[0] in caught.value.fields["where"]
    assert "gone is not there" in caught.value.fields["found"]
    assert len(str(caught.value).splitlines()) <= 5


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_each_node_has_a_gateway_and_scans_reach_a_model_on_another_one(tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("two_nodes.py"))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    subprocess.run([sys.executable, script, str(tmp_path / "found")], env=environment, timeout=380, check=True)
    found = json.loads((tmp_path / "found").read_text())
    assert (found["before"], found["gateways"], found["nodes"]) == (1, 2, 2), "a node that joins later gets one"
    assert found["status"] == [200]
    assert found["equal"], "masks equal the offline one"
    assert found["both"], "each gateway answered"
    assert found["away_s"] < 30
