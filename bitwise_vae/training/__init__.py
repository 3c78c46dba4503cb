"""The model fitted to clips.

Read loop.py first.
"""
