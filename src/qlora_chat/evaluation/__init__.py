"""How good an adapter is: perplexity, a hand-written set of questions with exact rules, a blind comparison.

Scope: asks an engine and counts. Knows nothing of training, merging or pages.
"""
