"""Generate docs/reference/ from the code, and the tables of docs/scale.md from the results of a benchmark.

    python docs/build.py

The pages of commands and settings and the tables are committed, and tests compare them with their sources. API pages
under docs/reference/api/ are generated for the documentation site only.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

from gtvray.cli.main import app
from gtvray.config import Config, SweepConfig, describe_keys
from gtvray.serving.arguments import AppArguments

REFERENCE = Path(__file__).resolve().parent / "reference"
API = REFERENCE / "api"
PACKAGE = REFERENCE.parent.parent / "gtvray"
SCALE = REFERENCE.parent / "scale.md"
CLUSTER = PACKAGE.parent / "benchmarks" / "results" / "cluster.json"
_WIDTH = 100
_HOW = "Written by `make docs` from the code; do not edit."
_SWEEP_NOTE = """\
A value of `space` is a range, `{low: 1.0e-4, high: 1.0e-2, log: true}` (`log` and `integer` are optional), or a
choice, `{choice: [0.3, 0.6]}`. Keys of `base`, `space` and `start` are those of the first table."""
_SERVE_NOTE = (
    "They stand under `args` in `serve/config.yaml`; `serving` there holds the `serving.*` keys of the first table."
)


def commands() -> Iterator[tuple[str, Any]]:
    """Every command, such as `data check`, with its command."""
    yield from _below(typer.main.get_command(app), "")


def _below(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if not children:
        yield name, command
        return
    for child, below in children.items():
        yield from _below(below, f"{name} {child}".strip())


def commands_page() -> str:
    """The page of all commands."""
    parts = ["# Commands", _HOW, "Exit codes: 0 done, 1 the work failed, 2 wrong use or wrong input."]
    for name, command in commands():
        context = command.context_class(command, info_name=f"gtvray {name}", terminal_width=_WIDTH)
        parts += [f"## gtvray {name}", f"```text\n{command.get_help(context).rstrip()}\n```"]
    return "\n\n".join(parts) + "\n"


def settings_page() -> str:
    """The page of all settings."""
    parts = ["# Settings", _HOW]
    parts += ["## Config", "In a YAML file by section, or as `section.field=value`.", _table(Config)]
    parts += ["## Sweep file", _SWEEP_NOTE, _table(SweepConfig)]
    parts += ["## Arguments of the Serve application", _SERVE_NOTE, _table(AppArguments, without="serving.")]
    return "\n\n".join(parts) + "\n"


def _table(section: type[BaseModel], without: str | None = None) -> str:
    lines = ["| key | default | meaning |", "| --- | --- | --- |"]
    for row in describe_keys(section):
        if without is None or not row["key"].startswith(without):
            # What has a factory, or must be given, has no default that could be shown.
            default = "" if row["default"] == "PydanticUndefined" else f"`{row['default']}`"
            lines.append(f"| `{row['key']}` | {default} | {row['about'].replace('|', '/')} |")
    return "\n".join(lines)


PAGES = {"commands.md": commands_page, "settings.md": settings_page}


def api_pages() -> Iterator[tuple[str, str]]:
    """Yield file name and text of the API page of every package with public names."""
    names = []
    for stub in sorted(PACKAGE.glob("*/__init__.pyi")):
        name = stub.parent.name
        module = importlib.import_module(f"gtvray.{name}")
        title = (module.__doc__ or "").strip().rstrip(".")
        parts = [f"# gtvray.{name}", f"{title}."]
        parts += [_documented(f"gtvray.{name}", public, getattr(module, public)) for public in module.__all__]
        names.append(name)
        yield f"{name}.md", "\n\n".join(parts) + "\n"
    listed = "\n".join(names)
    yield "index.md", f"# Python API\n\n:::{{toctree}}\n:maxdepth: 1\n\n{listed}\n:::\n"


def _documented(package: str, name: str, value: Any) -> str:
    if inspect.isclass(value):
        directive, options = "autoclass", ":members:\n"
    elif callable(value):
        directive, options = "autofunction", ""
    else:
        return f"**{name}**: `{value!r}`"
    return (
        f"```{{eval-rst}}\n.. {directive}:: {package}.{name}\n   {options}```"
        if options
        else (f"```{{eval-rst}}\n.. {directive}:: {package}.{name}\n```")
    )


def scale_page(text: str) -> str:
    """The page about large clusters with its tables replaced by those of the stored measurements."""
    found = json.loads(CLUSTER.read_text())
    raw = {name: section["found"] for name, section in found["raw"].items()}
    load = max(section["load_before"] for section in found["raw"].values())
    date = f"Date {found['date']}; {found['cpus']} cores, load average up to {load:g} from other work.\n\n"
    for name, rows in (("measured", date + _measured(raw)), ("extrapolated", _extrapolated(raw))):
        before, mark, rest = text.partition(f"<!-- {name} -->\n")
        text = before + mark + rows + rest[rest.index("<!-- end -->") :]
    return text


def _measured(raw: dict[str, Any]) -> str:
    """The coefficients; sections that were not measured have no rows."""
    rows = []
    for fault, each in raw.get("faults", {}).items():
        repeated = f"{each['lost_steps_ratio']:.2f} of a checkpoint interval repeated"
        rows.append(
            (f"recovery, {fault.replace('_', ' ')}", f"{each['recovery_s']:.0f} s to the next step; {repeated}")
        )
    for nodes, each in raw.get("trials", {}).items():
        rate = each["trials"] / each["wall_s"]
        rows.append((f"trials that sleep for 1 s, one at a time on each of {nodes} nodes", f"{rate:.2f} trials/s"))
    stores = raw["mlflow"]
    for store in ("sqlite_file", "server_on_sqlite", "server_on_postgresql"):
        for drivers, rate in (stores[store] or {}).items():
            what = f"epochs of {stores['metrics_per_epoch']} metrics to MLflow, {store.replace('_', ' ')}"
            rows.append((f"{what}, drivers: {drivers}", f"{rate:g} epochs/s"))
    size, cache = raw["checkpoint"], raw["cache"]
    times = f"written in {size['write_s']:.2f} s, read in {size['read_s']:.2f} s"
    rows.append(("checkpoint of the default network", f"{size['bytes'] / 1e6:.1f} MB; {times}"))
    rows.append(("prepared case (a phantom on 3 mm)", f"{cache['case_bytes'] / 1e6:.2f} MB"))
    read = f"read per step of {cache['batch_size']} patches while no case is in memory"
    rows.append((read, f"{_step_bytes(raw) / 1e6:.2f} MB"))
    for replicas, each in raw["serve"].items():
        used = f"{each['controller_cpus']:.2f} of a CPU; started in {each['started_s']:.0f} s"
        rows.append((f"Serve's controller at rest, replicas: {replicas}", used))
    return (
        "\n".join(["| what | result |", "| --- | --- |", *(f"| {what} | {result} |" for what, result in rows)]) + "\n"
    )


def _extrapolated(raw: dict[str, Any]) -> str:
    """What 10 and 100 GPUs would ask for, and how many reach a limit, with the assumptions that the page states."""
    epoch_s, epochs, steps, cases, per_node, link_mb = 30, 100, 50, 1000, 8, 110.0
    starts = [each["trials"] / each["wall_s"] for each in raw.get("trials", {}).values()]
    store = max((raw["mlflow"]["server_on_postgresql"] or raw["mlflow"]["server_on_sqlite"]).values())
    case_gb = cases * raw["cache"]["case_bytes"] / 1e9
    # Name, unit, demand of one GPU, limit and what sets it.
    wanted: list[tuple[str, str, float, float | None, str]] = [
        ("trials that must start", "/s", 1 / (epochs * epoch_s), starts[-1] if starts else None, "one driver"),
        ("epochs to record", "/s", 1 / epoch_s, store, "an MLflow server"),
        ("checkpoint writes", "MB/s", raw["checkpoint"]["bytes"] / 1e6 / epoch_s, link_mb, "a link of 1 Gbit/s"),
        ("reads of steps", "MB/s", steps * _step_bytes(raw) / 1e6 / epoch_s, link_mb, "a link of 1 Gbit/s"),
    ]
    rows = ["| extrapolated | 10 GPUs | 100 GPUs | limit | reached with |", "| --- | --- | --- | --- | --- |"]
    for name, unit, each, limit, what in wanted:
        most = "not measured | " if limit is None else f"{limit:.3g} {unit} by {what} | {_rounded(limit / each)} GPUs"
        rows.append(f"| {name} | {10 * each:.2g} {unit} | {100 * each:.2g} {unit} | {most} |")
    nodes = [math.ceil(gpus / per_node) for gpus in (10, 100)]
    rows.append(f"| first reads, {cases:,} cases | {nodes[0]} × {case_gb:.2f} GB | {nodes[1]} × {case_gb:.2f} GB | | |")
    return "\n".join(rows) + "\n"


def _rounded(number: float) -> str:
    """A number with two significant digits, without an exponent."""
    return f"{int(float(f'{number:.2g}')):,}"


def _step_bytes(raw: dict[str, Any]) -> float:
    # A file system in memory reads nothing from a disk; the patches cannot be larger than their cases.
    cache = raw["cache"]
    return float(cache["read_bytes_per_step"] or cache["batch_size"] * cache["case_bytes"])


def main() -> None:
    """Write the pages."""
    SCALE.write_text(scale_page(SCALE.read_text()))
    API.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (REFERENCE / name).write_text(page())
    for name, text in api_pages():
        (API / name).write_text(text)


if __name__ == "__main__":
    main()
