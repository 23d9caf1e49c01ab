"""Base + adapter -> one merged model, with its measured loss.

Scope: makes every merge that could be written, measures each against the unmerged adapter, writes the best and reports why.
The merges themselves are in models/adapter/merge.py and models/weights/quantize.py, which a first start uses too. Knows no
pages.
"""
