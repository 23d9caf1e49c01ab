"""Records that wait for delivery to LOGGING_URL, durable until the receiver has them."""
