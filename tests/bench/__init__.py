"""Tests of the benchmark suite: of what it says, never of how fast something is."""
