"""Language models end to end: ours in four bits against others on the same weights."""
