"""Data sets, their partition among clients, and the data for evaluation."""
