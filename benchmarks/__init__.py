"""Speed and memory, measured with pytest-benchmark; tests never assert a time."""
