"""Where cases are found, and datasets written in another layout."""
