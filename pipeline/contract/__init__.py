"""What decides bytes: specs, schemas, windows, seeds and reasons to drop a clip.

Read specs.py first. Knows no Ray or torch.
"""
