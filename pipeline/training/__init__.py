"""A codec fitted to motion.

Read train_job.py first.
"""
