"""Each command of the guides of clusters and maintenance is run by a named test, or has a reason why none runs it."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from .test_docs import test_documented_call_is_valid as check_call

REPOSITORY = Path(__file__).resolve().parent.parent
_LOCAL = "tests/cluster/test_local_cluster.py::test_up_status_down"
_SUBMIT = "tests/cli/test_submit.py"
_SHOWN = "tests/cli/test_submit_log.py::test_jobs_are_listed_shown_and_stopped"
_FOLLOWED = "tests/cli/test_submit_log.py::test_log_is_polled_without_the_stream"
_BACKUP = "tests/test_guides.py::test_a_backup_is_restored_beside_the_original"
_KUBERNETES = "not run: needs a Kubernetes cluster; gtvray's own words are checked below"
# Beginning of a command -> the test that runs it, or why none does. The longest beginning counts.
RUN_BY = {
    "docs/guide-cluster.md": {
        "gtvray cluster": _LOCAL,
        "gtvray submit --address http://127.0.0.1:8265 -- doctor": _LOCAL,
        "gtvray submit -- sweep": f"{_SUBMIT}::test_a_sweep_whose_driver_is_killed_continues",
        "gtvray submit --no-wait": f"{_SUBMIT}::test_no_wait_returns_the_job",
        "gtvray submit list": _SHOWN,
        "gtvray submit status": _SHOWN,
        "gtvray submit stop": _SHOWN,
        "gtvray submit logs": _SHOWN,
        "gtvray submit wait": _FOLLOWED,
    },
    "docs/guide-maintenance.md": {
        "mkdir": _BACKUP,
        "python3 -c": _BACKUP,
        "tar": _BACKUP,
        "cp": _BACKUP,
        "gtvray workspace adopt": _BACKUP,
        "gtvray models list": _BACKUP,
        "gtvray qa": _BACKUP,
    },
    "cluster/slurm/README.md": {"sbatch": "tests/cluster/test_slurm.py::test_requeued_sweep_resumes"},
    "cluster/kuberay/README.md": {"kubectl": _KUBERNETES, "export": _KUBERNETES, "head=": _KUBERNETES,
                                  "gtvray submit": _KUBERNETES},
}  # fmt: skip


def commands(page: str) -> list[str]:
    """The commands of the shell blocks of a page, and those in its text that have options."""
    text = (REPOSITORY / page).read_text()
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    lines = [line.strip() for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    rest = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    inline = [" ".join(words.split()) for words in re.findall(r"`(gtvray [^`]+)`", rest)]
    return [*filter(None, lines), *(words for words in inline if " --" in words and "..." not in words)]


@pytest.mark.parametrize("page", RUN_BY)
def test_every_command_is_run_or_has_a_reason(page: str) -> None:
    blocks = [line for line in commands(page) if not line.startswith("gtvray ") or line in _in_blocks(page)]
    unknown = [line for line in blocks if not any(line.startswith(start) for start in RUN_BY[page])]
    assert unknown == []
    unused = [start for start in RUN_BY[page] if not any(line.startswith(start) for line in blocks)]
    assert unused == []
    for test in filter(lambda each: not each.startswith("not run: "), RUN_BY[page].values()):
        file, _, name = test.partition("::")
        tree = ast.parse((REPOSITORY / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, test


@pytest.mark.parametrize("page", RUN_BY)
def test_every_call_of_gtvray_is_valid(page: str) -> None:
    """Also those after the script of Slurm, in indented blocks and in the text."""
    calls = []
    for line in commands(page):
        words = shlex.split(line, comments=True)
        script = next((number for number, word in enumerate(words) if word.endswith("gtvray.sbatch")), None)
        if script is not None:
            calls.append(shlex.join(["gtvray", *words[script + 1 :]]))
        elif line.startswith("gtvray "):
            calls.append(line)
    for call in calls:
        check_call(call)
    assert calls


def _in_blocks(page: str) -> str:
    text = (REPOSITORY / page).read_text()
    found = re.findall(r"^ *```sh\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    return "\n".join(re.sub(r"\\\n\s*", "", block) for block in found)
