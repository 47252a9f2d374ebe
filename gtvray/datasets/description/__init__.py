"""A dataset in tables and pictures."""
