"""Every compilation that the launch tables ask for, an op a file, and the table of what came out."""
