"""Whatever a person points at: what it is, and what is in it.

Read recognise.py first.
"""
