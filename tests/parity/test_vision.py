"""The encoder of pictures beside PyTorch."""

import numpy as np

from tests.models.test_vision import every_encoder, setup
from tests.parity.pytorch import torch
from tinymoe.models.vision import encode
from tinymoe.tree import named

F = torch.nn.functional


def torch_encode(images, p, config):
    """With PyTorch's own parts: a patch's projection is a convolution whose stride is its size."""
    kernel = p["projection"].reshape(config.patch, config.patch, -1, config.width).permute(3, 2, 0, 1)
    x = F.conv2d(images.permute(0, 3, 1, 2), kernel, stride=config.patch).flatten(2).mT + p["positions"]
    heads = config.heads, config.width // config.heads

    def norm(x, gain):
        return F.rms_norm(x, gain.shape, gain, eps=1e-6)

    for i in range(config.layers if config.encoder == "transformer" else 0):
        of_block = {name.removeprefix(f"blocks.{i}."): a for name, a in p.items()}
        n = norm(x, of_block["attention_norm.gain"])
        q, k, v = ((n @ of_block[f"attention.{name}"]).unflatten(-1, heads) for name in ("query", "key", "value"))
        q, k, v = (a.transpose(1, 2) for a in (q, k, v))
        a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + a @ of_block["attention.output"]
        up, down = of_block["mixture.experts.up"][0], of_block["mixture.experts.down"][0]
        x = x + F.gelu(norm(x, of_block["mixture_norm.gain"]) @ up, approximate="tanh") @ down
    return norm(x, p["norm.gain"]) @ p["output"]


@every_encoder
def test_pytorch_agrees_on_the_encoder(encoder):
    images, params, config = setup(encoder)
    theirs = {name: torch.tensor(leaf, requires_grad=True) for name, leaf in named(params).items()}
    expected = torch_encode(torch.tensor(images), theirs, config)
    features, backward = encode(images, params, config)
    np.testing.assert_allclose(features, expected.detach().numpy(), rtol=0, atol=1e-10)
    dfeatures = np.random.default_rng(8).standard_normal(features.shape)
    gradients = torch.autograd.grad(expected, list(theirs.values()), torch.tensor(dfeatures))
    for (name, ours), other in zip(named(backward(dfeatures)).items(), gradients, strict=True):
        size = float(other.abs().max())
        np.testing.assert_allclose(ours, other.numpy(), rtol=0, atol=1e-10 * size, err_msg=name)
