"""How well tokens stand for the motion they were made from: a bounded sample, decoded and compared.

Read sample.py first.
"""
