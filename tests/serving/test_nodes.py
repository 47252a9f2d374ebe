"""A node without the token, or without the bundle, is named before the endpoint is deployed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from gtvray.errors import ConfigError
from gtvray.runtime import Cluster
from gtvray.serving.nodes import missing_on_node, require_on_every_node

DIGEST = hashlib.sha256(b"secret").hexdigest()


def test_a_node_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
