"""Searchers: each proposes the next point of a search space from the record of earlier trials."""
