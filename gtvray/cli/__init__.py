"""The command line; a file a verb, each loading what it needs when it runs."""

from __future__ import annotations

from gtvray.cli.main import main

__all__ = ["main"]
