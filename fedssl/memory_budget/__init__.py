"""Clients that train inside a budget of bytes."""
