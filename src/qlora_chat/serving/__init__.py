"""Operation of a server for many people: admission, metrics, readiness, request logs, traces.

Scope: wraps engines and ASGI apps from the outside. Knows no routes' meaning, no prompts' text and no page.
"""
