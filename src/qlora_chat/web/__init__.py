"""The page: what a browser sees, what one tab is doing, and the guard in front of both.

Scope: everything between HTTP and chat.Chat. Knows no model library; `web.app` is the way in.
"""
