"""Scores, gates and soft mixtures beside PyTorch, element by element."""

import numpy as np
import pytest

from tests.ops.test_gates import CASES
from tests.parity.pytorch import torch
from tests.parity.test_parity import flat
from tests.parity.torch_gates import REFERENCES


@pytest.mark.parametrize("case", CASES, ids=str)
def test_pytorch_agrees(case):
    rng = np.random.default_rng(11)
    inputs = [torch.tensor(a) if isinstance(a, np.ndarray) else a for a in case.inputs]
    floats = [t.requires_grad_() for t in inputs if torch.is_tensor(t) and t.is_floating_point()]
    y, backward = case.operation(*case.inputs, **case.options)
    expected = flat(REFERENCES[case.operation](*inputs, **case.options))
    for one, other in zip(flat(y), expected, strict=True):
        other = other.detach().numpy()
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-13)
    outputs = [t for t in expected if t.requires_grad]
    dys = [rng.standard_normal(t.shape) for t in outputs]
    gradients = torch.autograd.grad(outputs, floats, [torch.tensor(dy) for dy in dys])
    for one, other in zip(backward(*dys), gradients, strict=True):
        size = max(float(other.abs().max()), 1e-3) if other.numel() else 0
        np.testing.assert_allclose(one, other.numpy(), rtol=0, atol=1e-10 * size)
