"""The whole job: a request is checked, its units tokenized, judged and published.

Read tokenize_job.py first.
"""
