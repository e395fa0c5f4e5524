"""The command line, on top of Lightning."""
