"""A job before it runs: how much it would write, and how long it would take.

Read job_plan.py first.
"""
