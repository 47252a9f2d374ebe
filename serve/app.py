"""Import target of the Serve config files here; the logic is in gtvray.serving."""

from __future__ import annotations

from gtvray.serving import build_app as build

__all__ = ["build"]
