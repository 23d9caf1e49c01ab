"""Weights on disk and in memory: checkpoints, shapes, quantisation, shards."""
