"""A dataset against its own promises, against its source, and against another dataset.

Read dataset.py first. Knows no Ray.
"""
