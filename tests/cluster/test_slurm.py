"""A real Slurm on this machine: a requeued sweep resumes and completes; which jobs come back, and which do not."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gtvray.tracking import read_trials

from ..cli.command import TINY_SWEEP
from ..ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
REPOSITORY = Path(__file__).resolve().parents[2]
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
CONFIG = """
ClusterName=gtvray
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldPort={control}
SlurmdPort={node}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
KillWait=15
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=6000 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=grace Nodes={host} MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes={host} MaxTime=INFINITE State=UP PriorityTier=9
"""


@pytest.fixture
def slurm() -> Iterator[dict[str, str]]:
    """A Slurm of one node; the environment of its commands."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} missing (Debian's packages slurm-wlm and munge)")
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons need root")
    folder = Path(tempfile.mkdtemp(prefix="gtvray-slurm-"))
    folder.chmod(0o711)
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir()
    user = pwd.getpwnam("munge")
    (folder / "munge" / "key").write_bytes(os.urandom(128))
    (folder / "munge" / "key").chmod(0o600)
    for path in (folder / "munge", folder / "munge" / "key"):
        os.chown(path, user.pw_uid, user.pw_gid)
    ports = [free_port() for _ in range(2)]
    text = CONFIG.format(
        folder=folder, host=socket.gethostname(), control=ports[0], node=ports[1], cpus=len(os.sched_getaffinity(0))
    )
    (folder / "slurm.conf").write_text(text)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"SLURM_CONF": str(folder / "slurm.conf"), "GTVRAY_BIN": str(Path(sys.executable).parent)}
    munge = [f"--{name}={folder}/munge/{name}" for name in ("socket", "pid-file", "log-file", "seed-file")]
    as_munge = ["setpriv", "--reuid", "munge", "--regid", "munge", "--clear-groups"]
    commands = [
        [*as_munge, "munged", "--foreground", "--force", f"--key-file={folder}/munge/key", *munge],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", socket.gethostname()],
    ]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            started.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))
            time.sleep(3)
        yield environment
    finally:
        # Jobs outlive Slurm's daemons.
        subprocess.run(["scancel", "--user=root"], env=environment, timeout=30, check=False)
        time.sleep(3)
        for process in reversed(started):
            process.terminate()
            process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def test_requeued_sweep_resumes(slurm: dict[str, str], phantoms: Path, tmp_path: Path) -> None:
    space = TINY_SWEEP.replace("epochs: 2", "epochs: 4").replace("trials: 2", "trials: 3\nmax_concurrent: 1")
    (tmp_path / "space.yaml").write_text(space.replace("steps_per_epoch: 2", "steps_per_epoch: 40"))
    script = REPOSITORY / "cluster" / "slurm" / "gtvray.sbatch"
    options = ["--parsable", f"--cpus-per-task={min(2, len(os.sched_getaffinity(0)))}", "--mem=5G", "--output=out.log"]
    command = ["sbatch", *options, str(script), "sweep", "space.yaml", "--data", str(phantoms)]
    job = run(command, slurm, tmp_path).strip()
    workspace = tmp_path / f"gtvray-{job}"
    wait(lambda: len(list(workspace.glob("sweeps/*/trials/*/epoch-*"))) > 1, tmp_path, 500)
    run(["scontrol", "requeue", job], slurm, tmp_path)
    # Slurm delays a requeued job by two minutes.
    wait(lambda: "JobState=COMPLETED" in run(["scontrol", "show", "job", job], slurm, tmp_path), tmp_path, 900)
    (sweep,) = (workspace / "sweeps").iterdir()
    assert sweep.name == f"space-slurm-{job}"
    assert [(trial.state, len(trial.epochs)) for trial in read_trials(sweep)] == [("completed", 4)] * 3
    assert len(list((workspace / "bundles").iterdir())) == 1


@pytest.fixture
def stand_ins(slurm: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The environment of Slurm's commands with programs that stand for Ray and gtvray, which end at SIGTERM."""
    folder = tmp_path / "bin"
    folder.mkdir()
    waiting = "trap 'exit 143' TERM\nfor _ in $(seq 3000); do sleep 0.1; done"
    texts = {"ray": waiting, "gtvray": f"touch running\n{waiting}", "python": "cat >/dev/null"}
    for name, text in texts.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    return {**slurm, "GTVRAY_BIN": str(folder)}


@pytest.mark.parametrize(
    ("cause", "state"),
    [("cancelled", "CANCELLED"), ("requeued", "PENDING"), ("preempted", "PENDING"), ("grace period", "PENDING")],
)
def test_job_comes_back_unless_it_is_cancelled(
    stand_ins: dict[str, str], tmp_path: Path, cause: str, state: str
) -> None:
    cpus = len(os.sched_getaffinity(0))
    partition = "--partition=grace" if cause == "grace period" else "--partition=main"
    options = ["--parsable", partition, f"--cpus-per-task={cpus}", "--mem=2G", "--output=out.log"]
    script = REPOSITORY / "cluster" / "slurm" / "gtvray.sbatch"
    job = run(["sbatch", *options, str(script), "sweep"], stand_ins, tmp_path).strip()
    wait((tmp_path / "running").exists, tmp_path, 120)
    if cause == "cancelled":
        run(["scancel", job], stand_ins, tmp_path)
    elif cause == "requeued":
        run(["scontrol", "requeue", job], stand_ins, tmp_path)
    else:
        urgent = ["--partition=urgent", f"--cpus-per-task={cpus}", "--mem=2G", "--output=/dev/null"]
        run(["sbatch", *urgent, "--wrap", "sleep 600"], stand_ins, tmp_path)

    def shown() -> str:
        return run(["scontrol", "--oneliner", "show", "job", job], stand_ins, tmp_path)

    # A job that is completing keeps its node until the script has ended.
    def has_ended() -> bool:
        return run(["squeue", "--noheader", "--format=%T", "--jobs", job], stand_ins, tmp_path).strip() in (
            "",
            "PENDING",
        )

    wait(has_ended, tmp_path, 200)
    assert f"JobState={state} " in shown(), (shown(), (tmp_path / "out.log").read_text()[-3000:])
    assert f"Restarts={int(state == 'PENDING')} " in shown()


def run(command: list[str], environment: dict[str, str], folder: Path) -> str:
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True).stdout


def wait(over: Callable[[], bool], folder: Path, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not over():
        assert time.monotonic() < deadline, (folder / "out.log").read_text()[-3000:]
        time.sleep(2)
