"""One reader for each format of motion shards; registry.py chooses among them."""
