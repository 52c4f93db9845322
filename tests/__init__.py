"""The tests stand as the package does: a folder for each of its own; what compares with PyTorch is in parity/."""
