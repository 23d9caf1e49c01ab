"""Quality of an adapter: questions with exact rules, perplexity, a blind pairwise comparison.

Scope: sends prompts to an engine and scores the answers. Knows nothing of training steps, merging or pages.
"""
