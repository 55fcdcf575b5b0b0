"""Plain PyTorch, written as the paper writes it: the truth that every other path is held to."""
