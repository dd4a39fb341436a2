"""The Triton programs; what they take, their launchers know."""
