"""What a person looks at after a run: one page, its numbers and its pictures.

Read build.py first.
"""
