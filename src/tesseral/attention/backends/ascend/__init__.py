"""Attention on Ascend NPUs, in Triton as triton-ascend takes it."""
