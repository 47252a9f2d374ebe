"""The commands of the guides work as printed, in order, in a folder like a user's."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .cli.command import OPEN_GATE, TINY_SWEEP
from .ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("ray")]
DOCS = Path(__file__).resolve().parent.parent / "docs"


def commands(guide: str, section: str) -> list[str]:
    """The lines of the shell blocks of a section, in order."""
    text = (DOCS / guide).read_text()
    level = re.search(rf"^(#+) {re.escape(section)}$", text, re.MULTILINE)
    assert level is not None, f"{guide} has no section {section}"
    rest = text[level.end() :]
    following = re.search(rf"^#{{1,{len(level[1])}}} ", rest, re.MULTILINE)
    blocks = re.findall(
        r"^ *```sh\n(.*?)^ *```", rest[: following.start() if following else None], re.DOTALL | re.MULTILINE
    )
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    assert lines, f"{guide}, {section}: no command"
    return lines


def run(line: str, folder: Path) -> str:
    """Run a line of a guide in a shell, with the installed command line."""
    path = f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; unset RAY_ADDRESS; "
    done = subprocess.run(
        ["bash", "-c", path + line], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> Path:
    """A folder with the data that the guides name, and a short sweep file under the name of a shipped one."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(phantoms, folder / "Naso_GTV")
    (folder / "tune_configs").mkdir()
    (folder / "tune_configs" / "head_neck_6mm.yaml").write_text(TINY_SWEEP)
    return folder


@pytest.fixture(scope="module")
def workspace(home: Path) -> Path:
    """Run the section "From a folder to a served model" up to the promotion; return the workspace."""
    (check, sweep, promote, *_) = commands("guide-your-data.md", "From a folder to a served model")
    run(check, home)
    run(sweep, home)
    (bundle,) = (home / "gtvray-runs" / "bundles").iterdir()
    # A model that is hardly trained passes only an open gate.
    run(f"{promote.replace('NAME', bundle.name)} {shlex.join(OPEN_GATE)}", home)
    return home / "gtvray-runs"


def test_the_promoted_model_is_evaluated_and_served_in_the_background(workspace: Path, home: Path) -> None:
    _, _, _, evaluate, serve, *_ = commands("guide-your-data.md", "From a folder to a served model")
    shutil.copytree(home / "Naso_GTV", home / "other_cases", dirs_exist_ok=True)
    assert "DSC" in run(evaluate, home)
    assert serve == "gtvray serve"
    port = free_port()
    started = f"{serve} serving.port={port} > serve.log 2>&1 & trap 'kill $!; wait $!' EXIT"
    ready = (
        f"for _ in $(seq 200); do curl -s -f --noproxy '*' http://127.0.0.1:{port}/readyz && exit 0; sleep 0.5; done"
    )
    run(f"{started}; {ready}; cat serve.log; exit 1", home)


def test_a_backup_is_restored_beside_the_original(workspace: Path, home: Path) -> None:
    for section in ("Back up", "Restore"):
        for line in commands("guide-maintenance.md", section):
            shown = run(line, home)
    assert workspace.is_dir()
    assert "identical" in shown or "reproduced" in shown, shown
    assert (home / "restored" / "mlflow.db").stat().st_size > 0
