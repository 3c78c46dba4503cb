"""One run while it lasts: its ownership of the output, how it is stopped, who watches it, and the account of it.

Read record.py first. Knows no Ray or torch.
"""
