"""Motion measured in one pass: mean, deviation, range and histogram of every column.

Read statistics_job.py first.
"""
