"""Helpers that know nothing of federations: seeds, units, files, checks, clocks."""
