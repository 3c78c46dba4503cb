"""Commands that run a job or tell of its runs. Read run_cli.py first, then tokenize_command.py."""
