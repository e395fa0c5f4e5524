"""Comparison of runs: missing ones are started or resumed, then all are compared from their folders."""
