"""The batch script with programs that stand for those of Slurm and Ray: signals, memory and the start of workers."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "cluster" / "slurm" / "gtvray.sbatch"
JOB = "JobId=7 JobName=gtvray JobState={state} Reason=None PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime={time} "
PROGRAMS = {
    # Runs the command here, whatever the node.
    "srun": """
while [ "${1#--}" != "$1" ]; do shift; done
echo "srun $SRUN_CPUS_PER_TASK" >>calls
case "$1" in hostname) echo "127.0.0.1 "; exit;; esac
exec "$@"
""",
    "scontrol": """
case "$*" in
    "show hostnames"*) printf 'one\\ntwo\\n';;
    *"show job"*) cat job;;
    *) echo "scontrol $*" >>calls;;
esac
""",
    # The head listens a moment after it has started; a worker needs it.
    "ray": """
echo "ray $*" >>calls
case "$*" in
    *--head*) sleep 2; touch listening; exec "$REAL_PYTHON" -m http.server --bind 127.0.0.1 "$PORT" 2>/dev/null;;
    *) [ -e listening ] && echo "worker found the head" >>calls; exec sleep 60;;
esac
""",
    "python": "cat >/dev/null",
    # Completes what it writes when it is stopped.
    "gtvray": """
trap 'sleep 1; echo "saved" >>calls; exit 130' TERM
touch running
for _ in $(seq 300); do sleep 0.1; done
""",
}


class Job:
    """A run of the script."""

    def __init__(self, folder: Path, nodes: int = 1, **environment: str) -> None:
        self.folder = folder
        programs = folder / "bin"
        programs.mkdir()
        for name, text in PROGRAMS.items():
            (programs / name).write_text(f"#!/usr/bin/env bash\n{text}")
            (programs / name).chmod(0o755)
        self.set_state("RUNNING", "None")
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            number = str(found.getsockname()[1])
        # The script derives the port from the job.
        job = number if 20000 <= int(number) < 30000 else str(int(number) % 10000)
        values = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "REAL_PYTHON": sys.executable,
            "PORT": str(20000 + int(job) % 10000),
            "GTVRAY_WORKSPACE": str(folder / "workspace"),
            "SLURM_JOB_ID": job,
            "SLURM_JOB_NUM_NODES": str(nodes),
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_SUBMIT_DIR": str(folder),
            "SLURM_CPUS_PER_TASK": "4",
            **environment,
        }
        command = ["bash", str(SCRIPT), "sweep", "space.yaml"]
        self.process = subprocess.Popen(command, cwd=folder, env=values, stderr=subprocess.PIPE, text=True)

    def set_state(self, state: str, preempted_at: str) -> None:
        """Set what Slurm states about the job."""
        (self.folder / "job").write_text(JOB.format(state=state, time=preempted_at))

    def wait_until_running(self) -> None:
        """Wait for the command."""
        deadline = time.monotonic() + 60
        while not (self.folder / "running").exists():
            assert time.monotonic() < deadline, self.calls()
            assert self.process.poll() is None, self.calls()
            time.sleep(0.1)

    def end(self, number: signal.Signals) -> list[str]:
        """Send a signal to the batch script; return the calls once it has ended."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        assert self.process.returncode != 0, errors
        return self.calls()

    def calls(self) -> list[str]:
        """Return what the programs recorded."""
        file = self.folder / "calls"
        return file.read_text().splitlines() if file.exists() else []


def options(calls: list[str], kind: str) -> list[str]:
    (line,) = [call for call in calls if call.startswith("ray start") and kind in call]
    return shlex.split(line)


@pytest.mark.parametrize(
    ("number", "state", "preempted_at", "requeued"),
    [
        (signal.SIGUSR1, "RUNNING", "None", True),
        (signal.SIGTERM, "CANCELLED", "None", False),
        (signal.SIGTERM, "RUNNING", "None", False),
        # A preemption without a grace period: Slurm requeues the job itself.
        (signal.SIGTERM, "PENDING", "2026-01-01T00:00:00", False),
        (signal.SIGTERM, "RUNNING", "2026-01-01T00:00:00", True),
    ],
    ids=["time limit", "cancelled", "stopped", "preempted", "grace period"],
)
def test_job_is_requeued_unless_it_is_cancelled(
    tmp_path: Path, number: signal.Signals, state: str, preempted_at: str, requeued: bool
) -> None:
    job = Job(tmp_path)
    job.wait_until_running()
    job.set_state(state, preempted_at)
    calls = job.end(number)
    assert "saved" in calls, "the command completes what it writes"
    assert any("requeue" in call for call in calls) == requeued


def test_time_limit_is_announced_by_the_signal_that_requeues() -> None:
    text = SCRIPT.read_text()
    assert "#SBATCH --signal=B:USR1@120" in text
    assert "#SBATCH --requeue" in text


def test_ray_gets_the_memory_and_cpus_of_the_job_and_workers_find_the_head(tmp_path: Path) -> None:
    job = Job(tmp_path, nodes=2, SLURM_MEM_PER_NODE="16384")
    job.wait_until_running()
    calls = job.end(signal.SIGTERM)
    assert "worker found the head" in calls
    for kind in ("--head", "--address"):
        given = options(calls, kind)
        assert int(given[given.index("--memory") + 1]) == 16 * 2**30 * 7 // 10
        assert given[given.index("--object-store-memory") + 1] == "500000000"
    assert {call for call in calls if call.startswith("srun")} == {"srun 4"}


def test_memory_per_cpu_is_multiplied_and_no_limit_leaves_it_to_ray(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    job = Job(tmp_path / "one", SLURM_MEM_PER_CPU="2048")
    job.wait_until_running()
    given = options(job.end(signal.SIGTERM), "--head")
    assert int(given[given.index("--memory") + 1]) == 8 * 2**30 * 7 // 10
    (tmp_path / "none").mkdir()
    job = Job(tmp_path / "none")
    job.wait_until_running()
    assert "--memory" not in options(job.end(signal.SIGTERM), "--head")
