"""The OpenAI-compatible API, on the page's port.

Scope: /v1 and its description: requests checked and rendered, answers streamed or whole, errors in OpenAI's shape. Who
may ask is the guard's affair, how many at once the gate's. Knows no page and no model library.
"""
