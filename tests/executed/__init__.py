"""Kernels as they are compiled for a card, executed on the CPU.

A process whose kernels are interpreted compiles none, so every test here starts a pytest of its own, with the plugin
``tests.harness.ptx.plugin``. ``instructions.py``, ``kernels.py`` and ``faults.py`` are run by ``test_machine.py``.
"""
