"""The OpenAI-compatible API, on the page's port.

Scope: /v1 and its description: requests checked and rendered, answers streamed or whole, errors in OpenAI's format. Access
is checked before, by server/access_control.py; serving/admission.py limits the load. Knows no page and no model library.
"""
