"""What a run tells: display, log, metrics, notices, run.json. Read display.py first."""
