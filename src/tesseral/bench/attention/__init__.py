"""``tesseral bench attention``: our attention against others on this machine."""
