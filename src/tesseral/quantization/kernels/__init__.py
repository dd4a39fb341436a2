"""Products of integer codes: one table of backends, one file each."""
