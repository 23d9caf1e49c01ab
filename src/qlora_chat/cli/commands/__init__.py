"""Commands: one module each, which imports what it needs inside its function."""
