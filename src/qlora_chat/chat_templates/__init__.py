"""Chat templates: a base's or an adapter's own Jinja text as a prompt format.

    conversation -> sandbox: text -> template and message parts told apart -> ids, stops, training text

Scope: templates, text and ids. Which template a model has is the business of models.
"""
