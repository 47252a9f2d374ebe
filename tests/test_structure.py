"""Structure of the code: layers, lazy imports, and the size of modules."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "gtvray"
HEAVY = ("torch", "ray", "mlflow", "monai")
PACKAGES = sorted(folder.name for folder in PACKAGE.iterdir() if any(folder.glob("*.py")))
MODULES = sorted(PACKAGE.rglob("*.py"))


def _loaded(program: str, watched: tuple[str, ...] = HEAVY) -> list[str]:
    """Which of the watched packages a fresh interpreter has loaded after a program."""
    ask = f"{program}\nimport sys; print('loaded:', *[name for name in {watched} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ask],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()[1:]


def _every_module(*packages: str) -> str:
    files = [file for package in packages for file in (PACKAGE / package).rglob("*.py")]
    names = [".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__") for file in files]
    assert len(names) > len(packages)
    return "\n".join(f"import {name}" for name in names)


def test_packages_import_lower_layers_only() -> None:
    """The contract is in pyproject.toml."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["gtvray", "gtvray.config", "gtvray.data", "gtvray.preprocessing"])
def test_light_packages_load_nothing_heavy(name: str) -> None:
    # Patches are augmented in torch; all other names of the data package must not load it.
    names = f"[each for each in dir({name}) if each != 'PatchSampler']"
    assert _loaded(f"import {name}\n[getattr({name}, each) for each in {names}]") == []


def test_packages_import_lazily() -> None:
    assert _loaded("\n".join(f"import gtvray.{package}" for package in PACKAGES if package != "cli")) == []


def test_low_layers_load_neither_torch_nor_ray() -> None:
    assert _loaded(_every_module("geometry", "io", "config")) == []


def test_preparing_a_request_needs_no_torch() -> None:
    assert _loaded("from gtvray.inference import SegmentationRequest, patch_starts") == []


def test_listing_models_needs_no_torch() -> None:
    assert _loaded("from gtvray.registry import Registry\nfrom gtvray.models import Bundle, verify_digest") == []


@pytest.mark.skipif(not (PACKAGE / "cli" / "__init__.py").is_file(), reason="there is no command line yet")
@pytest.mark.parametrize("arguments", [["--help"], ["data", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    run = f"import sys\nfrom gtvray.cli import main\nsys.argv[1:] = {arguments}\ntry: main()\nexcept SystemExit: pass"
    assert _loaded(run) == []


@pytest.mark.slow
def test_packages_list_their_public_names() -> None:
    stubs = [stub.parent.relative_to(PACKAGE).parts for stub in PACKAGE.rglob("*/__init__.pyi")]
    packages = [".".join(parts) for parts in stubs]
    assert {package for package in PACKAGES if package != "cli"} <= set(packages)
    opened = "".join(
        f"import gtvray.{name} as opened\nassert opened.__all__\n[getattr(opened, each) for each in opened.__all__]\n"
        for name in packages
    )
    done = subprocess.run([sys.executable, "-c", opened], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr


def test_wheel_contains_every_package() -> None:
    """setuptools has no automatic discovery beside listed folders: a new package must be added to the list."""
    listed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    inside = {".".join(file.parent.relative_to(REPOSITORY).parts) for file in PACKAGE.rglob("__init__.py")}
    assert inside | {"gtvray.deploy", "gtvray.tune_configs"} == set(listed)
    assert len(listed) == len(set(listed))


def test_text_files_are_read_in_one_place() -> None:
    """Text files from other systems may have byte-order marks or other encodings, which gtvray/io/text.py handles."""
    # These read files of the kernel, such as /proc and the limits of a cgroup, and of Ray.
    exempt = {
        "cli/doctor.py",
        "registry/lease.py",
        "runtime/host.py",
        "runtime/interfaces.py",
        "runtime/limits.py",
        "runtime/services.py",
        "runtime/tokens.py",
        "tracking/database.py",
    }
    ways = re.compile(r"\.read_text\(|(?<![\w.])(?<!def )open\(|\.open\(\"r\"|json\.load\(|np\.loadtxt|read_csv")
    found = {str(module.relative_to(PACKAGE)) for module in MODULES if ways.search(module.read_text())}
    assert found <= exempt
    loaders = re.compile(r"safe_load\((?!read_text|decode_text|text\))|csv\.reader\((?!io\.StringIO\(text\))")
    assert [str(module) for module in MODULES if loaders.search(module.read_text())] == []


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(PACKAGE)))
def test_modules_are_short_and_documented(module: Path) -> None:
    text = module.read_text()
    assert len(text.splitlines()) <= 450
    assert text.lstrip().startswith(('"""', 'r"""')), "a module starts with a docstring"


def test_tests_for_a_gpu_are_where_make_test_gpu_looks() -> None:
    tests = REPOSITORY / "tests"
    marks = ("mark." + "gpu", "NEEDS_" + "GPU")
    marked = {file for file in tests.rglob("test_*.py") if any(mark in file.read_text() for mark in marks)}
    assert marked == set(tests.glob("*/test_gpu.py"))
    assert "tests/*/test_gpu.py" in (REPOSITORY / "Makefile").read_text()
