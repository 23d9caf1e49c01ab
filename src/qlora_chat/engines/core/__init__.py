"""Scheduling, KV cache, sampling and speculation of the in-process engine, independent of the backend of the forward pass."""
