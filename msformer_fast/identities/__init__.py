"""The exact identities of the method in PyTorch: the ``"torch"`` backend.

Each op has up to two bodies. The plain one is an expression that autograd differentiates, any number of times; it runs
on every device but the CPU, and wherever a gradient is to be differentiated again. The one in strips is for the CPU: it
works on strips of rows that stay in the cache, and brings a backward of its own.
"""
