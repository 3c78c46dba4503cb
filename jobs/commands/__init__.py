"""The commands by subject; each folder's `*_cli.py` holds the options, and names the function that works."""
