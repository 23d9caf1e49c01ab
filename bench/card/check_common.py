"""Shared by the checks on a card: results, distances, times, and caches poisoned against reads of unwritten memory."""

from __future__ import annotations

import json

import torch

failures = []


def say(name, ok=None, **values):
    print(json.dumps({"what": name, **({} if ok is None else {"ok": bool(ok)}), **values}), flush=True)
    if ok is False:
        failures.append(name)


def relative(value, expected):
    return ((value.double() - expected.double()).norm() / expected.double().norm()).item()


def written(error, kl):
    return {"relative": f"{error:.1e}", "kl": f"{kl:.1e}"}


def timed(run, repeats=20):
    """Median microseconds of a graph's replay."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin()
        run()
        graph.capture_end()
        graph.replay()
        torch.cuda.synchronize()
        times = []
        for _ in range(repeats):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) * 1e3)
    return sorted(times)[len(times) // 2]


def cached_part(cache, slot, seen):
    """A slot's keys and values up to a position, (L, K, P, D) float32."""
    layers = [cache.layer(index).prefix(slot, seen) for index in range(len(cache.keys))]
    return [torch.cat(each).float() for each in zip(*layers, strict=True)]


def poison(cache, slots):
    """Fill slots with NaN, so that a read of unwritten memory shows."""
    for each in (cache.keys, cache.values) if cache.key_scales is None else (cache.key_scales, cache.value_scales):
        each[:, :slots] = float("nan")
