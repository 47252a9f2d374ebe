"""A real Slurm on this machine: a requeued sweep resumes and completes; which jobs come back, and which do not."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from gtvray.tracking import read_trials

from ..cli.command import ONE_TRIAL_SWEEP, OPEN_GATE, TINY_SWEEP
from ..ports import free_port
from .hosts import several_hosts, why_not

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
REPOSITORY = Path(__file__).resolve().parents[2]
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
FIRST_JOB = 4242
CONFIG = """
ClusterName=gtvray
SlurmctldHost={host}({address})
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
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
FirstJobId={first}
{nodes}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=grace Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=9
"""


@contextmanager
def running_slurm(nodes: Sequence[str], address: str = "127.0.0.1") -> Iterator[dict[str, str]]:
    """Run Slurm's daemons except those of the nodes; the environment of its commands.

    Args:
        nodes: lines of the configuration that describe the nodes.
        address: of the controller.
    """
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} missing (Debian's packages slurm-wlm and munge)")
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons need root")
    folder = Path(tempfile.mkdtemp(prefix="gtvray-slurm-"))
    folder.chmod(0o711)
    for name in ("munge", "state"):
        (folder / name).mkdir()
    user = pwd.getpwnam("munge")
    (folder / "munge" / "key").write_bytes(os.urandom(128))
    (folder / "munge" / "key").chmod(0o600)
    for path in (folder / "munge", folder / "munge" / "key"):
        os.chown(path, user.pw_uid, user.pw_gid)
    ports = [free_port() for _ in range(2)]
    named = {"folder": folder, "host": socket.gethostname(), "address": address, "first": FIRST_JOB}
    text = CONFIG.format(**named, control=ports[0], node=ports[1], nodes="\n".join(nodes))
    (folder / "slurm.conf").write_text(text)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"SLURM_CONF": str(folder / "slurm.conf"), "GTVRAY_BIN": str(Path(sys.executable).parent)}
    munge = [f"--{name}={folder}/munge/{name}" for name in ("socket", "pid-file", "log-file", "seed-file")]
    as_munge = ["setpriv", "--reuid", "munge", "--regid", "munge", "--clear-groups"]
    commands = [
        [*as_munge, "munged", "--foreground", "--force", f"--key-file={folder}/munge/key", *munge],
        ["slurmctld", "-D"],
    ]
    try:
        with started(commands, environment):
            try:
                yield environment
            finally:
                # Jobs outlive Slurm's daemons.
                subprocess.run(["scancel", "--user=root"], env=environment, timeout=30, check=False)
                time.sleep(3)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def started(commands: Sequence[list[str]], environment: dict[str, str]) -> Iterator[None]:
    """Run daemons, each with time to start."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            running.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))
            time.sleep(3)
        yield
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(30)


@pytest.fixture
def slurm() -> Iterator[dict[str, str]]:
    """A Slurm of one node; the environment of its commands."""
    host, cpus = socket.gethostname(), len(os.sched_getaffinity(0))
    with (
        running_slurm([f"NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=6000 State=UNKNOWN"]) as environment,
        started([["slurmd", "-D", "-N", host]], environment),
    ):
        yield environment


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Slurm of two nodes with one CPU each, on hosts with their own names and addresses."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    # Ray's folder of the job, which lies on the disk of each node.
    own = Path(f"/tmp/gtvray-{FIRST_JOB}-0")
    with several_hosts(2) as hosts:
        nodes = [f"NodeName=node{each.number} NodeAddr={each.address} CPUs=1 RealMemory=3000" for each in hosts]
        with running_slurm(nodes, hosts[0].address.rpartition(".")[0] + ".254") as environment:
            for each in hosts:
                name, log = f"node{each.number}", tmp_path / f"node{each.number}.log"
                command = ("slurmd", "-D", "-N", name)
                each.start_first(*command, environment=environment, log=log, own=(str(own),), name=name)

            def are_up() -> bool:
                shown = run(["sinfo", "--noheader", "--format=%T%D", "--partition=main"], environment, tmp_path)
                return shown == "idle2\n"

            wait(are_up, log, 60)
            yield environment
    own.rmdir()


def test_a_sweep_runs_on_two_nodes(two_nodes: dict[str, str], phantoms: Path, tmp_path: Path) -> None:
    """Each node has one CPU, so the two workers of a trial run on different nodes."""
    (tmp_path / "space.yaml").write_text(ONE_TRIAL_SWEEP.replace("space:", "  training.num_workers: 2\nspace:"))
    script = REPOSITORY / "cluster" / "slurm" / "gtvray.sbatch"
    options = ["--parsable", "--nodes=2", "--cpus-per-task=1", "--mem=2900M", "--output=out.log"]
    words = ["sweep", "space.yaml", "--data", str(phantoms), *OPEN_GATE]
    job = run(["sbatch", *options, str(script), *words], two_nodes, tmp_path).strip()
    assert int(job) == FIRST_JOB

    def shown() -> str:
        return run(["scontrol", "--oneliner", "show", "job", job], two_nodes, tmp_path)

    def is_over() -> bool:
        return re.search("JobState=(PENDING|CONFIGURING|RUNNING|COMPLETING)", shown()) is None

    wait(is_over, tmp_path / "out.log", 900)
    log = (tmp_path / "out.log").read_text()
    assert "JobState=COMPLETED" in shown(), log[-3000:]
    (sweep,) = (tmp_path / f"gtvray-{job}" / "sweeps").iterdir()
    assert [(trial.state, len(trial.epochs)) for trial in read_trials(sweep)] == [("completed", 1)]


def test_requeued_sweep_resumes(slurm: dict[str, str], phantoms: Path, tmp_path: Path) -> None:
    space = TINY_SWEEP.replace("epochs: 2", "epochs: 4").replace("trials: 2", "trials: 3\nmax_concurrent: 1")
    (tmp_path / "space.yaml").write_text(space.replace("steps_per_epoch: 2", "steps_per_epoch: 40"))
    script = REPOSITORY / "cluster" / "slurm" / "gtvray.sbatch"
    options = ["--parsable", f"--cpus-per-task={min(2, len(os.sched_getaffinity(0)))}", "--mem=5G", "--output=out.log"]
    command = ["sbatch", *options, str(script), "sweep", "space.yaml", "--data", str(phantoms)]
    job = run(command, slurm, tmp_path).strip()
    workspace = tmp_path / f"gtvray-{job}"
    wait(lambda: len(list(workspace.glob("sweeps/*/trials/*/epoch-*"))) > 1, tmp_path / "out.log", 500)
    run(["scontrol", "requeue", job], slurm, tmp_path)
    # Slurm delays a requeued job by two minutes.
    wait(
        lambda: "JobState=COMPLETED" in run(["scontrol", "show", "job", job], slurm, tmp_path),
        tmp_path / "out.log",
        900,
    )
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
    wait((tmp_path / "running").exists, tmp_path / "out.log", 120)
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

    wait(has_ended, tmp_path / "out.log", 200)
    assert f"JobState={state} " in shown(), (shown(), (tmp_path / "out.log").read_text()[-3000:])
    assert f"Restarts={int(state == 'PENDING')} " in shown()


def run(command: list[str], environment: dict[str, str], folder: Path) -> str:
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True).stdout


def wait(over: Callable[[], bool], log: Path, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not over():
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(2)
