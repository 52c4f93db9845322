"""python -m tinymoe.golden: test vectors for authors of kernels."""
