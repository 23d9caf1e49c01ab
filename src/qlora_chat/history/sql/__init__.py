"""Conversations in SQLite or PostgreSQL: the store, its rows, full-text search, recovery of damaged files."""
