"""Costs of local steps, found on tensors without data."""
