"""A run's folder: results and report."""
