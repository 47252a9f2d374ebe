"""Ctrl-C, SIGTERM and SIGKILL during the demo: no process or temporary file is left, and the next run succeeds.

All runs share one workspace: each starts with the files that the previous interrupted run has left.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gtvray.runtime import Cluster

from ..ports import free_port
from .command import KILLED_GONE_S, ONE_TRIAL_SWEEP, OPEN_GATE, Running, partial_files, run

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def one_trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep file of one trial of one epoch."""
    path = tmp_path_factory.mktemp("sweep") / "one.yaml"
    path.write_text(ONE_TRIAL_SWEEP)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, phantoms: Path, one_trial: Path) -> list[object]:
    """Arguments of a demo that takes seconds, in a workspace shared by the tests of this module."""
    folder = tmp_path_factory.mktemp("interrupt")
    return ["demo", "--data", phantoms, "--sweep", one_trial, "--workspace", folder, *OPEN_GATE]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for temporary files, with a path that is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="gt", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.parametrize(
    ("stage", "number"),
    [
        ("data", signal.SIGINT),
        pytest.param("ray", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("prepare", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("mlflow", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("sweep", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_interrupted_with_a_cluster_of_its_own(
    stage: str, number: signal.Signals, base: list[object], temporary: Path
) -> None:
    demo = Running(*base, "--port", free_port(), TMPDIR=str(temporary))
    _interrupt(demo, stage, number)
    # Ray may be interrupted while it starts; it then leaves what it has written of its logs.
    assert stage == "ray" or demo.left_files(temporary) == []


@pytest.mark.parametrize(
    ("stage", "number"),
    [
        pytest.param("serve", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("evaluate", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("sweep", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("promote", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("request", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_interrupted_on_a_running_cluster(
    stage: str, number: signal.Signals, base: list[object], local_ray: Cluster
) -> None:
    # Tests that kill a controller leave its cleanup actor, which is Ray's, on the shared cluster.
    before = _alive_on(local_ray)
    demo = Running(*base, "--port", free_port(), "--address", local_ray.address)
    _interrupt(demo, stage, number)
    assert {left: name for left, name in _alive_on(local_ray).items() if left not in before} == {}


@pytest.mark.slow
def test_killed_in_a_sweep_and_run_again(base: list[object]) -> None:
    killed = Running(*base, "--port", free_port())
    killed.wait_for("sweep: ")
    killed.interrupt(signal.SIGKILL)
    assert killed.end().code == -signal.SIGKILL

    again = Running(*base, "--port", free_port())
    finished = again.end()
    assert finished.code == 0, finished
    assert again.strays() == []
    workspace = Path(str(base[base.index("--workspace") + 1]))
    assert partial_files(workspace) == []

    assert [process for process in killed.strays(within_s=10) if "Agent" not in process] == []
    assert killed.strays(KILLED_GONE_S) == []


@pytest.mark.slow
def test_killed_while_the_tracking_store_is_made(tmp_path: Path) -> None:
    killed = Running("models", "--workspace", tmp_path)
    while not any(file.stat().st_size for file in tmp_path.glob("*mlflow.db")):
        time.sleep(0.01)
    killed.interrupt(signal.SIGKILL)
    assert killed.end().code == -signal.SIGKILL
    again = run("models", "--workspace", tmp_path, "--json")
    assert (again.code, again.stdout) == (0, "[]\n")


def _interrupt(demo: Running, stage: str, number: signal.Signals) -> None:
    demo.wait_for(f"{stage}: ")
    demo.interrupt(number)
    finished = demo.end()
    assert "interrupted" in finished.error(code=1)
    assert finished.stdout == ""
    assert demo.strays() == []


def _alive_on(cluster: Cluster) -> dict[str, str]:
    """Map the ids of live actors and placement groups of a cluster to their names."""
    from ray.util.state import list_actors, list_placement_groups

    actors = {actor.actor_id: f"{actor.class_name} {actor.state}" for actor in list_actors() if actor.state != "DEAD"}
    groups = {group.placement_group_id: group.name for group in list_placement_groups() if group.state != "REMOVED"}
    return actors | groups


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_second_interrupt_ends_at_once(second: signal.Signals) -> None:
    """The first interrupt is raised as KeyboardInterrupt, whose cleanup would take a minute.

    A stage that begins restores the handler of SIGTERM, which Ray replaces.
    """
    program = (
        "import signal, sys, time\n"
        "from gtvray.cli.common import Progress, ended_by_second_interrupt\n"
        "progress = Progress({}, quiet=True)\n"
        "with ended_by_second_interrupt(lambda: 'resume it: gtvray ...'):\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
        "    progress.begin('sweep', 'four trials')\n"
        "    try:\n"
        "        print('ready', flush=True); time.sleep(60)\n"
        "    except KeyboardInterrupt:\n"
        "        print('cleaning', flush=True); time.sleep(60)\n"
        "print('not reached')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "cleaning\n"
    process.send_signal(second)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (1, "")
    assert errors.splitlines()[-1] == "resume it: gtvray ..."


@pytest.mark.slow
def test_sweep_interrupted_twice_leaves_nothing_and_is_resumed(
    one_trial: Path, phantoms: Path, tmp_path: Path, temporary: Path
) -> None:
    words = ["sweep", one_trial, "--data", phantoms, "--workspace", tmp_path]
    sweep = Running(*words, TMPDIR=str(temporary))
    name = sweep.wait_for("resume it: ").partition("sweep ")[2].split()[0]
    sweep.wait_for("trial 1/1")
    sweep.interrupt()
    sweep.interrupt()
    finished = sweep.end(within_s=30)
    assert finished.code == 1
    assert f"--resume {name}" in finished.stderr
    assert sweep.strays(KILLED_GONE_S) == []
    # Ended at once, it could not remove the folder of Ray's logs.
    shutil.rmtree(temporary / f"r{sweep.pid}", ignore_errors=True)
    assert sweep.left_files(temporary) == []
    resumed = Running(*words, "--resume", name, TMPDIR=str(temporary))
    assert resumed.end().code == 0
    assert resumed.strays() == []
    assert resumed.left_files(temporary) == []
