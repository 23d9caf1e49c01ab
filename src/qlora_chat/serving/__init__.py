"""What keeps a server for many people in order: admission, counting, readiness, request logs, traces.

Scope: wraps engines and ASGI apps from the outside. Knows no routes' meaning, no prompts' text and no page.
"""
