"""Command line, on top of Lightning's."""
