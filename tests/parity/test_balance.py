"""Balancing losses and capacity beside PyTorch, element by element."""

import numpy as np
import pytest

from tests.ops.test_balance import cases
from tests.parity.pytorch import torch
from tests.parity.torch_balance import REFERENCES


@pytest.mark.parametrize("case", cases(seed=1), ids=str)
def test_pytorch_agrees(case):
    inputs = [torch.tensor(a) if type(a) is np.ndarray else a for a in case.inputs]
    floats = [t.requires_grad_() for t in inputs if torch.is_tensor(t) and t.is_floating_point()]
    y, backward = case.operation(*case.inputs, **case.options)
    expected = REFERENCES[case.operation](*inputs, **case.options)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-10, atol=1e-14)
    dy = np.asarray(np.random.default_rng(2).standard_normal(y.shape))
    gradients = torch.autograd.grad([expected], floats, [torch.from_numpy(dy)])
    for one, other in zip(backward(dy), gradients, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-10, atol=1e-14)
