"""What lies in an output folder: fragments, manifest, shards of both formats, and what may be cleaned.

Read token_store.py first. Knows no Ray or torch.
"""
