"""Serve config files and their import target; installed as gtvray.deploy."""
