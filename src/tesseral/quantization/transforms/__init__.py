"""Invertible transforms that flatten what is about to be rounded."""
