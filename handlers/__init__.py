"""Real flows to read and to copy."""
