"""Triton kernels and their launchers: tensors in, tensors out. No autograd, no choice of backend.

Installed as ``msformer_fast.kernels``.
"""
