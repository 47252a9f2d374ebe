"""The git commit of gtvray's own code, where it runs from a clone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import gtvray

_TIMEOUT_S = 10.0


def code_commit(package: Path | None = None) -> str:
    """Return the commit of the clone that the package is imported from, with `-dirty` if its files were changed.

    Args:
        package: folder of the package; by default gtvray's own.

    Returns:
        the commit; empty if the package is not in a clone, or git is not installed.
    """
    root = (package or Path(gtvray.__file__).parent).parent
    # A repository above an installed package is another project.
    if not (root / ".git").exists():
        return ""
    command = ["git", "--no-optional-locks", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(
            # Without tags the description is the commit itself.
            [*command, "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
