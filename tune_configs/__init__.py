"""Search spaces; installed as `gtvray.tune_configs`."""
