"""Manifests, image and batch script to run the command on a cluster, and what fills them."""
