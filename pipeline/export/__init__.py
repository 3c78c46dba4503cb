"""Fragments -> right-sized shards: clips.py joins ledgers, layout.py plans, build.py writes, dataset.py publishes."""
