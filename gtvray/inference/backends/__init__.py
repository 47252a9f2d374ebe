"""Backends that run a network: torch or OpenVINO, behind one protocol."""
