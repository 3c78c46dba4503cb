"""Jobs of a Ray cluster: submit, status, logs, stop. Read submit.py first."""
