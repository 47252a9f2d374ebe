"""Description of a dataset in tables, charts and pictures."""
