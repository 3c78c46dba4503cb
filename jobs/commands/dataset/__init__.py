"""Commands on datasets that stand. Read dataset_cli.py first; each command has a module of its name."""
