"""Folder of a run, with its results and report."""
