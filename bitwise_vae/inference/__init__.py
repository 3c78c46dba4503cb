"""Windows -> bits, fast: on a CPU, or on a GPU with kernels of our own.

Read encoder.py first.
"""
