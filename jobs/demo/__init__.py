"""Motion made up here, and the command that tokenizes it. Read demo.py first."""
