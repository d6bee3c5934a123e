"""Pages of the API and of the command line, from docstrings and from the program."""
