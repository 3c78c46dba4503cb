"""The steps of a job: read, tokenize, write, and measure. Each is a function of what it is given.

Read blocks.py first: what travels between them. Knows no Ray.
"""
