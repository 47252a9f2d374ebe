"""Checks of a dataset: each case, and copies among cases."""
