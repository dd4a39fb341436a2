"""Four-bit linear layers against torch's, and against what this machine could do."""
