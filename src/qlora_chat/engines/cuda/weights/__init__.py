"""Weights and adapters in the tiles that the decode kernels read."""
