"""The data path: motion shards in, token shards out. Read graph.py first."""
