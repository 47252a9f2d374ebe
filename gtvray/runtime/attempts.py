"""Run a command of gtvray again when its process was killed, as the entry point of a submitted job.

    python -m gtvray.runtime.attempts RETRIES COMMAND [OPTIONS]

A process that ends by itself is not run again, whatever its exit code. The run id in the environment makes the next
attempt continue what the last one began.
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

# Commands that continue what an earlier attempt began. Others could do their work twice.
CONTINUED = ("sweep", "train", "predict")
# As a shell reports a process that was killed by a signal.
_KILLED = 128


def run_attempts(command: Sequence[str], retries: int) -> int:
    """Run a command until it ends by itself, or has been killed once more than `retries`.

    SIGTERM and SIGINT are passed on, and end the attempts.

    Returns:
        the exit code; 128 and the number of the signal if it was killed.
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
