"""Processes are planned by node, and their memory by the headers of the scans."""

from __future__ import annotations

from pathlib import Path

import pytest

from gtvray.batch import estimate_memory_bytes, plan_pool
from gtvray.errors import InputError, ResourceError
from gtvray.io import read_volume_header
from gtvray.runtime import Cluster, Node

from .conftest import write_ball

FOUR_SMALL = Cluster("a:1", False, (Node(2, 0, 8e9, 4),))
WITH_GPU = Cluster("a:1", False, (Node(8, 0, 32e9, 2), Node(8, 2, 32e9)))
FROM_ZERO = Cluster("a:1", False, (Node(0, 0),), (Node(4, 0, 16e9, 3),))


def plan(cluster: Cluster, scans: int = 100, threads: int = 1, gpus: float | None = None, gb: float = 3) -> object:
    found = plan_pool(cluster, scans, threads=threads, gpus=gpus, memory_bytes=int(gb * 1e9), on_gpu=True)
    return found.actors, found.device


def test_each_process_fits_on_one_node() -> None:
    assert plan(FOUR_SMALL) == (8, "cpu")
    assert plan(FOUR_SMALL, gb=5) == (4, "cpu")
    assert plan(FOUR_SMALL, scans=3) == (3, "cpu")
    assert plan(FROM_ZERO, threads=2) == (6, "cpu")
    for too_much in ({"threads": 3}, {"gb": 9}, {"gpus": 1}):
        with pytest.raises(ResourceError, match="fits on this cluster"):
            plan(FOUR_SMALL, **too_much)  # type: ignore[arg-type]


def test_gpus_are_used_where_there_are_any() -> None:
    assert plan(WITH_GPU) == (2, "cuda")
    assert plan(WITH_GPU, gpus=0.5) == (4, "cuda")
    assert plan(WITH_GPU, gpus=0)[1] == "cpu"  # type: ignore[index]
    on_cpu = plan_pool(WITH_GPU, 9, threads=1, gpus=None, memory_bytes=0, on_gpu=False)
    assert on_cpu.device == "cpu"
    with pytest.raises(InputError, match="CPUs only"):
        plan_pool(WITH_GPU, 9, threads=1, gpus=1, memory_bytes=0, on_gpu=False)
    with pytest.raises(InputError, match="a process uses one GPU"):
        plan(WITH_GPU, gpus=2)


def test_memory_grows_with_the_largest_scan(tmp_path: Path) -> None:
    small = write_ball(tmp_path / "a.nii.gz")
    (tmp_path / "b.nrrd").write_bytes(b"not a scan")
    nothing, one = (estimate_memory_bytes(paths) for paths in ([tmp_path / "gone"], [small, tmp_path / "b.nrrd"]))
    assert one - nothing == 3 * 10 * 30 * 28 * 24


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd"])
def test_only_headers_are_read(tmp_path: Path, name: str) -> None:
    header = read_volume_header(write_ball(tmp_path / name))
    assert (header.shape, header.data_file) == ((30, 28, 24), None)


def test_digest_covers_a_detached_data_file(tmp_path: Path) -> None:
    from gtvray.batch.steps import input_sha256

    lines = ["NRRD0004", "type: short", "dimension: 3", "space: left-posterior-superior", "sizes: 2 2 2"]
    lines += ["space directions: (1,0,0) (0,1,0) (0,0,1)", "space origin: (0,0,0)", "endian: little"]
    (tmp_path / "a.nhdr").write_text("\n".join([*lines, "encoding: raw", "data file: a.raw", "", ""]))
    (tmp_path / "a.raw").write_bytes(bytes(16))
    before = input_sha256(tmp_path / "a.nhdr")
    (tmp_path / "a.raw").write_bytes(bytes(15) + b"\1")
    assert input_sha256(tmp_path / "a.nhdr") != before
