"""Input files -> units of work, the same whenever and wherever they are listed.

Read plan.py first. Knows no Ray or torch.
"""
