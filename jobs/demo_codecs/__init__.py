"""How the shipped codecs were made. Read train_demo.py first."""
