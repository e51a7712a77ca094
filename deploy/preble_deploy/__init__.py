"""Putting it up: the command line, and the launchers behind it."""
