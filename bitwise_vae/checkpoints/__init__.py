"""Checkpoints: read, written, told apart by digests, with a record of their quality.

Read checkpoint.py first.
"""
