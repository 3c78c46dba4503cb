"""What a person asks for: the keys of run.yaml, checked.

Read job_config.py first. Knows no Ray, torch, Arrow or storage.
"""
