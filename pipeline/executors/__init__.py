"""Who runs the stages: this process, or Ray.

Read plain_loop.py first, then ray_graph.py; executor.py is where job and executor meet.
"""
