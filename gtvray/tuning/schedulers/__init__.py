"""Schedulers: each decides after an epoch whether a trial continues."""
