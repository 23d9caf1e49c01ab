"""Parts of the page beside the messages: settings, use of the window, an empty conversation, tokens of an answer."""
