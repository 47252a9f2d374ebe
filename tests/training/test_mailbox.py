"""The actor between workers and driver, in this process."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from gtvray.training.mailbox import Mailbox, News


@pytest.mark.parametrize("module", ["mailbox", "callbacks"])
def test_processes_that_only_pass_on_do_not_import_torch(module: str) -> None:
    """A group starts only when they have started."""
    code = (
        f"import sys, gtvray.training.{module}\n"
        "print([name for name in ('torch', 'monai', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.split("\n")[-2] == "[]"


def test_jobs_and_reports_pass_through_in_order() -> None:
    async def pass_through() -> None:
        box = Mailbox()
        first = asyncio.create_task(box.job(0))
        assert await box.give(b"first")
        assert await first == b"first"
        assert [await box.put(b"one"), await box.put(b"two")] == [False, False]
        assert await box.take(1.0) == News([b"one", b"two"], None, is_done=False)
        await box.stop()
        assert await box.put(b"three")
        await box.done()
        assert await box.take(1.0) == News([b"three"], None, is_done=True)
        second = asyncio.create_task(box.job(1))
        await box.close()
        assert await second is None
        assert not await box.give(b"second"), "a group that has ended accepts no job"

    asyncio.run(pass_through())
