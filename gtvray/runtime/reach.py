"""Check of a command's paths on the nodes of a cluster: the entry point of a short job before that of the command.

    python -m gtvray.runtime.reach NEEDED

NEEDED is the JSON object of `Needed`. The last line of the output is a mark and the JSON object of `Looked`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gtvray.runtime.attempts import CONTINUED
from gtvray.runtime.package import FLAGS, NEW_PATHS, PATH_OPTIONS, target_of

MODULE = "gtvray.runtime.reach"
_MARK = "gtvray paths: "
# A node may have to start a process first, which takes tens of seconds on a busy one.
_ANSWER_S = 120.0


@dataclass(frozen=True)
class Needed:
    """Absolute paths of a command.

    Attributes:
        read: files and folders that must exist.
        written: new or existing ones whose parent folder must exist.
        everywhere: whether every node needs them; otherwise the one that runs the command.
    """

    read: tuple[str, ...]
    written: tuple[str, ...]
    everywhere: bool

    def as_json(self) -> str:
        """The argument of this module."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Looked:
    """Result of the check.

    Attributes:
        lacking: one text for each node that lacks paths.
        unchecked: one text for each node that did not answer.
    """

    lacking: tuple[str, ...]
    unchecked: tuple[str, ...] = ()

    def as_line(self) -> str:
        """The line of the output that `read_result` finds."""
        return f"{_MARK}{json.dumps(asdict(self))}\n"


def needed_by(words: Sequence[str]) -> Needed:
    """Return the paths that a command needs on the cluster.

    Args:
        words: the command as it runs there, with absolute paths; relative ones are files that are sent with the job.
    """
    read: list[str] = []
    written: list[str] = []
    new = target_of(words)
    for number, word in enumerate(words):
        option, separator, value = word.partition("=")
        if not (separator and option.startswith("-")):
            before = words[number - 1] if number else ""
            option, value = "" if "=" in before else before, word
        if option.startswith("-") and option not in (*FLAGS, *PATH_OPTIONS):
            # The value of an option that is no path, or the argument after a flag that is not known here.
            continue
        if Path(value).is_absolute():
            (written if number == new or option in NEW_PATHS else read).append(value)
    return Needed(tuple(read), tuple(written), bool(words) and words[0] in CONTINUED)


def missing(read: Sequence[str], written: Sequence[str]) -> list[str]:
    """Return the paths that do not exist on this machine; of those to be written, the parent folders."""
    parents = [str(Path(path).parent) for path in written if not Path(path).exists()]
    return [path for path in (*read, *parents) if not Path(path).exists()]


def look(needed: Needed) -> Looked:
    """Look for paths on this node, or on every node of the cluster."""
    if not needed.everywhere:
        return Looked(_named("the head", missing(needed.read, needed.written)))
    # Ray is imported in the job only.
    from gtvray.runtime.cluster import connect
    from gtvray.runtime.nodes import ask_every_node

    with connect("auto"):
        answers = ask_every_node(missing, needed.read, needed.written, timeout_s=_ANSWER_S)
    return Looked(
        tuple(text for answer in answers for text in _named(answer.node, answer.value or [])),
        tuple(f"{answer.node}: {answer.failure}" for answer in answers if answer.failure is not None),
    )


def read_result(log: str) -> Looked | None:
    """Return the result that a job's log reports; None if it reports none."""
    lines = [line for line in log.splitlines() if line.startswith(_MARK)]
    if not lines:
        return None
    found = json.loads(lines[-1].removeprefix(_MARK))
    return Looked(tuple(found["lacking"]), tuple(found["unchecked"]))


def _named(node: str, paths: Sequence[str]) -> tuple[str, ...]:
    return (f"{', '.join(paths)} on {node}",) if paths else ()


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    sys.stdout.write(look(Needed(tuple(given["read"]), tuple(given["written"]), given["everywhere"])).as_line())
