"""Artifacts in an object store: the missing client is named before work starts, faults are explained."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from gtvray.errors import ResourceError
from gtvray.registry import Registry
from gtvray.tracking import artifact_errors, experiment_id

LOCATION = "s3://bucket/artifacts"


@pytest.fixture
def without_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    # None makes every import of it fail.
    monkeypatch.setitem(sys.modules, "boto3", None)


def test_store_whose_client_is_missing_is_refused_before_work_starts(
    client: MlflowClient, tmp_path: Path, without_boto3: None
) -> None:
    client.create_experiment(tmp_path.name, artifact_location=LOCATION)
    with pytest.raises(ResourceError, match="client is not installed") as caught:
        experiment_id(client, tmp_path.name, None)
    assert caught.value.fields["where"] == LOCATION
    assert "pip install 'gtvray[s3]'" in caught.value.fields["do"]
    run = client.create_run(client.get_experiment_by_name(tmp_path.name).experiment_id)
    with pytest.raises(ResourceError, match="client is not installed"):
        Registry(client, "any", tmp_path).require_run(run.info.run_id)
    # A server may hide where its artifacts are; the store's own import fails then, which needs a part of boto3.
    pytest.importorskip("botocore", reason="boto3 is not installed (tests/install_servers.sh)")
    with pytest.raises(ResourceError, match="client is not installed"), artifact_errors("away", "models:/m-1", "wait"):
        client.list_artifacts(run.info.run_id)


@pytest.mark.parametrize(
    ("location", "shown"),
    [("file:///data/a@b/artifacts", "file:///data/a@b/artifacts"), ("sftp://ada:secret@host/a", "sftp://host/a")],
)
def test_fault_names_the_store_without_credentials(location: str, shown: str) -> None:
    with pytest.raises(ResourceError) as caught, artifact_errors("it cannot be read", location, "repair it"):
        raise FileNotFoundError(errno.ENOENT, "No such file", "weights")
    assert (caught.value.what, caught.value.fields["where"]) == ("it cannot be read", shown)
    assert caught.value.fields["do"] == "repair it"


def test_full_disk_stays_a_full_disk() -> None:
    with pytest.raises(OSError, match="full"), artifact_errors("it cannot be written", "file:///a", "repair it"):
        raise OSError(errno.ENOSPC, "full")
