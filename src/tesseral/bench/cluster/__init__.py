"""Benchmark of clustering: accuracy by the paper's recipe, speed, memory and growth of cost."""
