"""A node without the token or the bundle is reported before the endpoint is deployed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gtvray.config import ServingConfig
from gtvray.errors import ConfigError
from gtvray.runtime import Cluster
from gtvray.serving import nodes, server
from gtvray.serving.nodes import jobs_database, missing_on_node, require_on_every_node, unshared_jobs

from ..ports import free_port

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


@dataclass
class Answer:
    """The answer of a node."""

    node: str
    value: str | None
    failure: str | None = None


def test_jobs_on_several_nodes_need_a_common_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "count_nodes", lambda: 3)

    def found(*values: str | None) -> str | None:
        answers = [Answer(f"node-{number}", value, None if value else "late") for number, value in enumerate(values)]
        monkeypatch.setattr(nodes, "ask_every_node", lambda _: answers)
        return unshared_jobs()

    assert found("one", "one", "one") is None
    assert "is not set on node-0, node-2;" in str(found("", "one", None))
    assert "node-2 and others;" in str(found("", "", "", ""))
    assert "differs between nodes" in str(found("one", "other", "one"))
    monkeypatch.setattr(nodes, "count_nodes", lambda: 1)
    assert found("") is None


def test_endpoint_without_a_common_database_accepts_no_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deployed: list[dict[str, Any]] = []
    monkeypatch.setattr(server, "_check_no_serve", lambda: None)
    monkeypatch.setattr(server, "_provide_token", lambda *_: None)
    monkeypatch.setattr(server, "_deploy", lambda config, args: deployed.append(args))
    monkeypatch.setattr(server.Server, "wait_listening", lambda self: None)
    for reason, folder in (("not set", None), (None, tmp_path)):
        monkeypatch.setattr(server, "unshared_jobs", lambda reason=reason: reason)
        started = server.start_server(None, ServingConfig(port=free_port()), "secret", jobs_dir=tmp_path)
        assert (started.without_jobs, deployed.pop()["jobs_dir"]) == (reason, folder)


def test_address_of_the_database_is_not_disclosed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GTVRAY_JOBS_DATABASE", raising=False)
    assert jobs_database() == ""
    monkeypatch.setenv("GTVRAY_JOBS_DATABASE", "postgresql://user:password@host/jobs")
    assert len(jobs_database()) == 64


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
