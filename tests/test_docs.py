"""Documentation matches the code: every name, link, command and setting in it exists, and none is missing."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

from gtvray import __version__, errors
from gtvray.config import known_keys

REPOSITORY = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), *REPOSITORY.glob("cluster/*.md")])
# Without the pages that `make docs` generates, whose sources are checked.
GUIDES = [path for path in DOCUMENTS if not {"reference", "_build"} & set(path.parts)]


def _name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def _load_build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_build", REPOSITORY / "docs" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BUILD = _load_build()
COMMANDS: dict[str, Any] = dict(BUILD.commands())


def _defined(path: Path) -> set[str]:
    """Functions and classes of a module, methods as Class.method."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {
                f"{node.name}.{each.name}"
                for each in node.body
                if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return names


def _references(cell: str) -> list[tuple[str, str]]:
    return re.findall(r"`([\w/]+\.py)::([\w.]+)`", cell)


# Results and limits that several documents state, with the documents that must agree.
STATED = {
    "0.563": ("README.md", "docs/benchmarks.md"),
    "0.462": ("README.md", "docs/benchmarks.md"),
    "0.525 to 0.602": ("README.md", "docs/benchmarks.md"),
    "0.604": ("docs/benchmarks.md", "benchmarks/LEDGER.md"),
    "0.584": ("docs/benchmarks.md", "benchmarks/LEDGER.md"),
    "0.87": ("README.md", "docs/benchmarks.md"),
    "0.63": ("README.md", "docs/benchmarks.md"),
    "1.6 s": ("README.md", "docs/benchmarks.md"),
    "264": ("README.md", "docs/benchmarks.md"),
    "-0.05": ("docs/benchmarks.md", "docs/hazards.md", "docs/guide-serving.md"),
    "42 real cases": ("docs/benchmarks.md", "docs/hazards.md", "docs/guide-serving.md"),
    "-0.67": ("docs/benchmarks.md", "docs/hazards.md"),
    "network namespaces": ("README.md", "docs/guide-cluster.md"),
    "three trials with two workers each over two hosts": ("README.md", "docs/guide-cluster.md"),
}
# Outdated statements that must not reappear.
RETIRED = (r"rank correlation\s+of \+0\.15", r"a sweep that is stopped is not resumed", r"only one-node clusters")


def _hazards() -> list[list[str]]:
    lines = (REPOSITORY / "docs" / "hazards.md").read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| H\d", line)]


@pytest.mark.parametrize("row", _hazards(), ids=lambda row: row[0])
def test_a_hazard_names_controls_and_tests_that_exist(row: list[str]) -> None:
    _, hazard, controls, tests = row
    assert hazard
    for cell, folder in ((controls, "gtvray/"), (tests, "tests/")):
        found = _references(cell)
        assert len(found) == cell.count("`") // 2 > 0, f"every entry is `file::name`: {cell}"
        for file, name in found:
            assert file.startswith(folder)
            assert name in _defined(REPOSITORY / file), f"{file} has no {name}"


def test_hazards_are_numbered_without_a_gap() -> None:
    ids = [row[0] for row in _hazards()]
    assert ids == [f"H{number:02d}" for number in range(1, len(ids) + 1)]
    assert ids


@pytest.mark.parametrize("name", BUILD.PAGES)
def test_reference_is_up_to_date(name: str) -> None:
    assert (BUILD.REFERENCE / name).read_text() == BUILD.PAGES[name](), "stale: run `make docs`"


def test_the_tables_about_scale_are_those_of_the_stored_measurements() -> None:
    text = BUILD.SCALE.read_text()
    assert BUILD.scale_page(text) == text, "stale: run `make docs`"
    assert text.count("\n| ") > 30
    assert "**extrapolated**" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented(name: str) -> None:
    assert f"## gtvray {name}\n" in (BUILD.REFERENCE / "commands.md").read_text()
    assert "Example: " in COMMANDS[name].help
    assert [option.name for option in COMMANDS[name].params if not option.help] == []


def test_every_setting_is_described() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \|.*\| (.*) \|$", (BUILD.REFERENCE / "settings.md").read_text(), re.MULTILINE)
    assert set(known_keys()) <= {key for key, _ in rows}
    assert [key for key, about in rows if not about.strip()] == []


def _examples() -> list[Any]:
    """Lines of shell blocks, and the commands' own examples, that call gtvray."""
    texts = [(_name(path), path.read_text()) for path in GUIDES]
    lines = [
        (name, line)
        for name, text in texts
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    lines += [(name, line) for name, each in COMMANDS.items() for line in re.findall(r"Example: (.*)", each.help)]
    calls = [(name, re.sub(r"^(\w+=\S+ )*", "", line)) for name, line in lines]
    return [pytest.param(call, id=f"{name}: {call}") for name, call in calls if call.startswith("gtvray ")]


@pytest.mark.parametrize("call", _examples())
def test_documented_call_is_valid(call: str) -> None:
    words = shlex.split(call, comments=True)[1:]
    if words[0] in ("submit", "serve") and " ".join(words[:2]) not in COMMANDS and words[1:2] != ["--help"]:
        words.insert(1, "run")
    name = max((each for each in COMMANDS if words[: len(each.split())] == each.split()), key=len, default=None)
    assert name is not None, "no such command"
    rest = words[len(name.split()) :]
    try:
        COMMANDS[name].make_context(name, list(rest))
    except typer.Exit:
        assert "--help" in rest
    except typer.TyperException as error:
        pytest.fail(error.format_message())
    for key in re.findall(r"(?:^| )([a-z_]+(?:\.[a-z_]+)+)=", call):
        assert key in known_keys()
    if "--" in rest:
        test_documented_call_is_valid("gtvray " + shlex.join(rest[rest.index("--") + 1 :]))


@pytest.mark.parametrize("path", GUIDES, ids=_name)
def test_links_resolve(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text())
    dead = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert dead == []


@pytest.mark.parametrize("path", GUIDES, ids=_name)
def test_files_named_in_a_document_exist(path: Path) -> None:
    """A name is relative to the repository, the package, the document, or the shipped sweeps."""
    named = re.findall(r"`([\w.-]+(?:/[\w.-]+)*\.(?:py|sh|yaml|toml))(?:::[\w.]+)?`", path.read_text())
    homes = (REPOSITORY, REPOSITORY / "gtvray", path.parent, REPOSITORY / "tune_configs")
    assert [name for name in named if not any((home / name).exists() for home in homes)] == []


@pytest.mark.parametrize("path", GUIDES, ids=_name)
def test_settings_and_errors_named_in_a_document_exist(path: Path) -> None:
    text = path.read_text()
    sections = {key.partition(".")[0] for key in known_keys()}
    keys = {key for key in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)\b", text) if key.partition(".")[0] in sections}
    assert sorted(key for key in keys if key not in known_keys()) == []
    raised = re.findall(r"`(\w+Error)`", text)
    assert [name for name in raised if not hasattr(errors, name)] == []


def _plain(name: str) -> str:
    return " ".join((REPOSITORY / name).read_text().split())


@pytest.mark.parametrize("statement", STATED)
def test_documents_agree_on_a_result(statement: str) -> None:
    stated = re.compile(rf"(?<![\d.]){re.escape(statement)}(?!\d)")
    assert [name for name in STATED[statement] if not stated.search(_plain(name))] == []


def test_ratios_in_the_benchmarks_follow_from_the_seconds_in_the_readme() -> None:
    """README gives seconds for gtvray and its peers, and the benchmarks give the ratio of the unrounded values."""
    ours, peers = re.search(r"OpenVINO bf16 \| ([\d.]+) s \| nnU-Net and MONAI (\d+) s", _plain("README.md")).groups()  # type: ignore[union-attr]
    row = re.search(
        r"OpenVINO bf16 \| 1\.6 s \| ([\d.]+) s: (\d+) times \| ([\d.]+) s: (\d+) times", _plain("docs/benchmarks.md")
    )
    assert row is not None
    assert [round(float(row[n])) for n in (1, 3)] == [int(peers)] * 2
    assert row[2] == row[4] == "66"
    assert int(peers) / (float(ours) + 0.05) <= int(row[2]) <= int(peers) / (float(ours) - 0.05)


def test_number_of_looks_is_that_of_the_ledger() -> None:
    looks = re.findall(r"\| (\d+) \|$", (REPOSITORY / "benchmarks" / "LEDGER.md").read_text(), re.MULTILINE)
    assert looks == [str(number) for number in range(1, 12)]
    assert "scored eleven times" in _plain("docs/benchmarks.md")


@pytest.mark.parametrize("path", GUIDES, ids=_name)
def test_retired_statements_are_gone(path: Path) -> None:
    text = " ".join(path.read_text().split())
    assert [pattern for pattern in RETIRED if re.search(pattern, text, re.IGNORECASE)] == []


def test_examples_give_settings_as_key_value() -> None:
    calls = [str(parameter.values[0]) for parameter in _examples()]
    assert [call for call in calls if {"-s", "--set"} & set(shlex.split(call, comments=True))] == []


def test_documented_layers_match_the_contract() -> None:
    (contract,) = PROJECT["tool"]["importlinter"]["contracts"]
    layers = [layer.replace("gtvray.", "") for layer in contract["layers"]]
    assert f"```text\n{chr(10).join(layers)}\n```" in (REPOSITORY / "ARCHITECTURE.md").read_text()


def test_one_version_everywhere() -> None:
    version = PROJECT["project"]["version"]
    changelog = (REPOSITORY / "CHANGELOG.md").read_text()
    assert re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)[0] == version == __version__
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (version, PROJECT["project"]["license"])


def test_the_citation_has_what_its_format_asks_for() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert {entry["doi"] for entry in citation["references"]} == {"10.21227/h75x-gt46", "10.1002/mp.14845"}
    assert all({"type", "title", "authors"} <= set(entry) for entry in citation["references"])


def test_decisions_are_numbered_without_a_gap_and_fit_a_page() -> None:
    pages = sorted((REPOSITORY / "docs" / "decisions").glob("0*.md"))
    assert [page.name[:5] for page in pages] == [f"{number:04d}-" for number in range(1, len(pages) + 1)]
    for page in pages:
        lines = page.read_text().splitlines()
        assert lines[0].startswith(f"# {page.name[:4]}: ")
        assert len(lines) <= 60


def test_readme_is_short_and_states_its_limits() -> None:
    readme = " ".join((REPOSITORY / "README.md").read_text().split())
    assert len(readme.split()) <= 800
    for words in ("Research use only", "not a medical device", "clinician must review", "What was never validated"):
        assert words.lower() in readme.lower()
    assert "Apache License" in (REPOSITORY / "LICENSE").read_text()
