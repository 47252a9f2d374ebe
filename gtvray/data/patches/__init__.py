"""Training patches and their random changes."""
