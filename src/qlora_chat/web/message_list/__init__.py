"""The list of messages: our own component, its data, and the events that it sends."""
