"""Fragments -> right-sized shards: clips.py joins ledgers, layout.py plans, build.py writes, dataset.py publishes.

Read dataset.py first. Knows no Ray or torch.
"""
