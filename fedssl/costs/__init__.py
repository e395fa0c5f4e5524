"""What a local step costs, found on tensors without data."""
