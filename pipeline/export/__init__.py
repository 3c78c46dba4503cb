"""Fragments -> right-sized shards: clips.py joins ledgers, layout.py plans, shards.py and build.py write.

Read export_dataset.py first. Knows no Ray or torch.
"""
