"""Delivery of finished turns to LOGGING_URL.

Scope: payload, redaction, signature, sender. Knows no engine and no page.
"""
