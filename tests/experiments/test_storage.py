"""A node that has no access to the data or the workspace is reported before work starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from gtvray import __version__
from gtvray.errors import ResourceError
from gtvray.experiments import examine_nodes, require_storage
from gtvray.experiments.storage import look
from gtvray.runtime import Cluster, Node


def test_node_reports_missing_paths(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    marker.touch()
    versions, problems = look(marker, [tmp_path], None)
    assert (versions["gtvray"], problems) == (__version__, [])
    # Another disk is mounted at the same path.
    _, problems = look(tmp_path / "written elsewhere", [tmp_path / "data"], "http://127.0.0.1:9")
    assert problems[:2] == [
        f"{tmp_path / 'data'} does not exist",
        f"{tmp_path} does not exist, or is another folder",
    ]
    assert problems[2].startswith("MLflow: ")


@pytest.mark.ray
def test_nodes_are_named(local_ray: Cluster, tmp_path: Path) -> None:
    (report,) = examine_nodes(tmp_path / "workspace", [tmp_path])
    assert report.problems == ()
    assert report.node.startswith(local_ray.address.rpartition(":")[0])
    assert list((tmp_path / "workspace").iterdir()) == []
    two = Cluster(local_ray.address, False, (Node(2, 0, count=2),))
    require_storage(two, tmp_path, tmp_path)
    require_storage(local_ray, tmp_path, tmp_path / "gone")
    with pytest.raises(ResourceError, match="not every node") as caught:
        require_storage(two, tmp_path, tmp_path / "gone")
    assert report.node in caught.value.fields["where"]
    assert f"{tmp_path / 'gone'} does not exist" in caught.value.fields["found"]
    assert len(str(caught.value).splitlines()) <= 5
