"""What this machine can do, and how to choose; imports nothing by itself."""
