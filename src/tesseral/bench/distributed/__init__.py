"""Sums over ranks, hidden behind attention and products: how much of them."""
