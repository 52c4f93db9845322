"""PyTorch, for the tests of this folder: where it is missing they are skipped."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; pip install -e .[parity] to compare with it")
torch.set_num_threads(1)  # the arrays are tiny: more threads only wait for each other
