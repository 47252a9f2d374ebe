"""Entry point of a submitted job that restarts a gtvray command whose process was killed.

    python -m gtvray.runtime.attempts RETRIES COMMAND [OPTIONS]

A process that exits is not restarted, whatever its exit code. The run id in the environment lets the next attempt
continue the run of the previous one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import FrameType

from gtvray.runtime.run_id import RUN_ID_VARIABLE, new_run_id

# Commands that continue the work of an earlier attempt. Others could repeat it.
CONTINUED = ("sweep", "train", "predict")
# As a shell reports a process that was killed by a signal.
_KILLED = 128


def run_attempts(command: Sequence[str], retries: int) -> int:
    """Run a command until it exits, or has been killed `retries` + 1 times.

    SIGTERM and SIGINT are forwarded to the command, which is then not restarted.

    Returns:
        the exit code; 128 plus the number of the signal if it was killed.
    """
    os.environ.setdefault(RUN_ID_VARIABLE, new_run_id())
    stopped = threading.Event()
    running: subprocess.Popen[bytes] | None = None

    def stop(number: int, _: FrameType | None) -> None:
        stopped.set()
        if running is not None:
            running.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    attempt = 0
    while True:
        running = subprocess.Popen(command)
        if stopped.is_set():
            # The signal came between two attempts.
            running.terminate()
        code = running.wait()
        if code >= 0:
            return code
        attempt += 1
        name = signal.Signals(-code).name
        if stopped.is_set() or attempt > retries:
            sys.stderr.write(f"killed by {name}{'' if stopped.is_set() else f' in attempt {attempt}, the last'}\n")
            return _KILLED - code
        sys.stderr.write(f"killed by {name} in attempt {attempt} of {retries + 1}; continuing\n")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(run_attempts([sys.executable, "-m", "gtvray", *sys.argv[2:]], int(sys.argv[1])))
