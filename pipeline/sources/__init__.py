"""Motion shards in every format -> clips. Formats are read one file each; registry.py is the way in.

Read registry.py first. Knows no Ray or torch.
"""
