"""A federation: its settings, server and client, run by an engine or dry."""
