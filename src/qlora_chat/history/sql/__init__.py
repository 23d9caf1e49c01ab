"""Conversations in a SQL database: the store, its rows, full-text search, recovery of damaged files."""
