"""The process that serves page and API: listening, access control, security headers, start and shutdown."""
