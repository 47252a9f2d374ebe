"""Prepared cases on disk."""
