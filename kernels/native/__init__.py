"""CPU kernels in C++ and their launchers: tensors in, tensors out. No autograd, no choice of backend.

Installed as ``msformer_fast.kernels.native``, with a library for each instruction set where a compiler was found.
"""
