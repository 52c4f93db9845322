"""Recurrent networks beside PyTorch's own modules."""

import numpy as np

from tests.ops.test_recurrent import every_case
from tests.parity.pytorch import torch
from tests.parity.torch_recurrent import REFERENCES


@every_case
def test_pytorch_agrees(case):
    rng = np.random.default_rng(21)
    inputs = [torch.tensor(a, requires_grad=True) for a in case.inputs]
    outputs, backward = case.operation(*case.inputs)
    expected = REFERENCES[case.operation](*inputs)
    dys = [rng.standard_normal(y.shape) for y in outputs]
    gradients = torch.autograd.grad(expected, inputs, [torch.tensor(dy) for dy in dys])
    for ours, theirs in zip((*outputs, *backward(*dys)), (*expected, *gradients), strict=True):
        size = float(theirs.detach().abs().max()) if theirs.numel() else 0
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=0, atol=1e-10 * size)
