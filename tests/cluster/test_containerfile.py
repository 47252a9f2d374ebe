"""The steps of the Containerfile in a clean Debian root, without an image registry; the result runs as its user."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gtvray import __version__

# The first test pays for the root: debootstrap takes up to eight minutes on two busy cores, then torch with CUDA is
# downloaded and installed in it.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
REPOSITORY = Path(__file__).resolve().parents[2]
# The base image is Debian with Python; Debian's own Python stands for it.
BASE = ("ca-certificates", "python3", "python3-pip")
# Read-only root file system, as in cluster/kuberay; each process may write to /tmp and its home.
CONTAINED = """
set -e
ip link set lo up
mount --bind {root} {root}
mount -t proc proc {root}/proc
mount -t tmpfs tmpfs {root}/tmp
mount -t tmpfs tmpfs {root}/dev/shm
mount -t tmpfs -o mode=1777 tmpfs {root}/home/gtvray
mount -o remount,ro,bind {root}
exec chroot --userspec={user} {root} /usr/bin/env -i PATH=/usr/local/bin:/usr/bin:/bin HOME=/home/gtvray {environment} \
    sh -c {command}
"""


def _instructions() -> list[tuple[str, str]]:
    text = (REPOSITORY / "cluster" / "Containerfile").read_text().replace("\\\n", " ")
    lines = (line for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return [(keyword, rest.strip()) for keyword, _, rest in (line.partition(" ") for line in lines)]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A root in which the instructions of the Containerfile were carried out."""
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        pytest.skip("needs root and debootstrap (tests/install_servers.sh)")
    folder = tmp_path_factory.mktemp("image")
    root, wheels = folder / "root", folder / "wheels"
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(BASE)}", "bookworm", str(root)]
    if (made := subprocess.run(command, capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"no package mirror is reachable: {made.stdout[-200:]}")
    # Downloaded outside, where pip is configured.
    packages = next(rest for keyword, rest in _instructions() if keyword == "RUN" and rest.startswith("pip install"))
    download = packages.replace("pip install --no-cache-dir", f"{sys.executable} -m pip wheel -q -w {wheels}")
    download = download.replace("/source/constraints.txt", str(REPOSITORY / "constraints.txt"))
    subprocess.run(download.replace("/source ", f"{REPOSITORY} "), shell=True, check=True, cwd=folder)
    (root / "wheels").mkdir()
    shutil.copy2("/etc/resolv.conf", root / "etc/resolv.conf")
    in_root = {"PIP_BREAK_SYSTEM_PACKAGES": "1", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels",
               "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}  # fmt: skip
    for keyword, rest in _instructions():
        if keyword == "COPY":
            *sources, target = rest.split()
            for source in sources:
                _copy(REPOSITORY / source, root / target.lstrip("/"))
        elif keyword == "RUN":
            run = f"mount --bind {wheels} {root}/wheels; mount -t proc proc {root}/proc; exec chroot {root} sh -c "
            done = subprocess.run(
                ["unshare", "--mount", "sh", "-c", run + shlex.quote(rest)],
                capture_output=True, text=True, env=in_root, check=False,
            )  # fmt: skip
            assert done.returncode == 0, (rest, done.stdout[-500:], done.stderr[-2000:])
    yield root
    shutil.rmtree(folder)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def _run(root: Path, command: str) -> subprocess.CompletedProcess[str]:
    values = dict(_instructions())
    script = CONTAINED.format(root=root, user=values["USER"], environment=values["ENV"], command=shlex.quote(command))
    contained = ["unshare", "--mount", "--pid", "--fork", "--net", "sh", "-c", script]
    return subprocess.run(contained, capture_output=True, text=True, check=False)


def test_image_has_every_package_of_the_source_and_runs_as_its_user(image: Path) -> None:
    names = sorted(
        ".".join(file.parent.relative_to(REPOSITORY).parts) for file in (REPOSITORY / "gtvray").rglob("__init__.py")
    )
    done = _run(image, f"id -u; gtvray --version; python3 -c 'import {', '.join(names)}; print(gtvray.__file__)'")
    assert done.returncode == 0, done.stderr
    user, version, where = done.stdout.splitlines()
    assert user == "1000"
    assert __version__ in version
    assert where.startswith("/usr/local/lib/python3"), "the installed package, not /source"


def test_doctor_finds_nothing_wrong_with_a_read_only_root_and_without_a_network(image: Path) -> None:
    done = _run(image, "cd /tmp && gtvray doctor")
    assert done.returncode == 0, done.stdout + done.stderr


def test_training_runs_in_the_image(image: Path) -> None:
    """Phantoms and one training: Ray, torch, MONAI and MLflow work as the image's user."""
    settings = (
        "preprocessing.spacing_mm=[8,8,8] network.features=[8,16,16] training.patch_ijk=[24,24,24] "
        "training.epochs=1 training.steps_per_epoch=2 training.precision=fp32"
    )
    done = _run(image, f"cd && gtvray data phantom phantoms --count 8 && gtvray train {settings} --data phantoms")
    assert done.returncode == 0, done.stdout + done.stderr
