"""Bytes that each kernel of an op reads and writes, as formulas: what the interpreter counts, at any size."""
