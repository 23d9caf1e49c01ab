"""POST /v1/responses: text in, text out, and previous_response_id to continue.

Scope: OpenAI's Responses format over the same parsing, streams and stored turns as chat completions. Knows no tools, no images.
"""
