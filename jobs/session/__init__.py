"""Who runs the stages, and what it finds: executor, Ray, signals, environment. Read session.py first."""
