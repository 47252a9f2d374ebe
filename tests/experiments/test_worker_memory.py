"""Available memory is measured on a worker, except for a CPU training on a local cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gtvray.cli.config import _worker_memory_bytes
from gtvray.config import load_config
from gtvray.errors import ResourceError
from gtvray.experiments.tasks import worker_memory_bytes
from gtvray.runtime import Cluster, Node
from gtvray.training import device_bytes

CPU, GPU = load_config(), load_config(overrides=["training.use_gpu=true"])
LOCAL = Cluster("127.0.0.1:1", True, (Node(2, 0),))


def test_a_local_cpu_training_has_this_machines_memory() -> None:
    assert worker_memory_bytes(CPU, LOCAL) == device_bytes(CPU)


def test_cluster_without_a_gpu_is_refused_before_waiting_for_a_worker() -> None:
    for cluster in (LOCAL, Cluster("10.0.0.1:1", False, (Node(64, 0),))):
        with pytest.raises(ResourceError, match="does not fit on this cluster") as caught:
            worker_memory_bytes(GPU, cluster)
        assert "0 GPUs" in caught.value.fields["found"]
        assert "training.use_gpu=false" in caught.value.fields["do"]


@pytest.mark.slow
@pytest.mark.ray
def test_memory_is_read_on_a_worker_of_a_joined_cluster(local_ray: Cluster) -> None:
    joined = Cluster(local_ray.address, False, local_ray.nodes)
    assert worker_memory_bytes(CPU, joined) == device_bytes(CPU)


def test_config_plan_for_a_gpu_connects_to_a_cluster_and_for_a_cpu_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    connected: list[Cluster] = []

    @contextmanager
    def connect() -> Iterator[Cluster]:
        connected.append(LOCAL)
        yield LOCAL

    monkeypatch.setattr("gtvray.runtime.connect", connect)
    assert _worker_memory_bytes(CPU) == device_bytes(CPU)
    assert connected == []
    with pytest.raises(ResourceError, match="does not fit on this cluster"):
        _worker_memory_bytes(GPU)
    assert connected == [LOCAL]
