"""A folder for each of the package; lessons/ for the lessons, parity/ for comparisons with PyTorch."""
