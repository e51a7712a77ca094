"""The commands, one module each: its docstring is the help, `command()` makes the typer command."""
