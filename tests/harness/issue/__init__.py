"""Instructions that a launch issues, counted in the machine code without running it.

``control_flow`` follows a launch through the branches of its PTX, where every loop's bounds can be computed from the
arguments, and counts how often each line is executed. ``machine_code`` finds the loops of the SASS, which the assembler
unrolled as it liked, and how often each runs, from instructions of the same line that are the same in both.
"""
