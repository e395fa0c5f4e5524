"""Utilities that are independent of federations: seeds, units, files, checks, clocks."""
