"""The least that each op must move and compute: what its benchmark, its tests and its report are held against."""
