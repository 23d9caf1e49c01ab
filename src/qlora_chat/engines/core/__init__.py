"""Scheduling, KV cache, sampling and drafts of the in-process engine, independent of where the forward pass runs."""
