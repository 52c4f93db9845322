"""A picture as rows that a language model can read: one for each patch, of the width of the text's rows.

    x = patches(images) · projection + positions
    for each block of a transformer encoder:   x = x + attention(norm(x));   x = x + feed_forward(norm(x))
    features = norm(x) · output

The blocks are those of the language model, but every patch sees every other, and they have no router. How features
meet the text is in `ops/cross.py`.

Letters besides the usual ones: S pixels on a side of a patch · R patches (rows) of a picture · N = B·R rows.

Source: Dosovitskiy et al. 2021 (ViT), eq. 1–4, without the class token: the language model reads all patches.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import ops
from ..data.images import patches
from ..ops.cross import full_attention
from . import parameters
from .language import feed_forward, normalize
from .parameters import Array, Attention, Block, LanguageConfig, Mixture, Norm

ENCODERS = {
    "linear": "each patch by itself, projected",
    "transformer": "patches that see each other through blocks of attention",
}


@dataclass(frozen=True)
class VisionConfig:
    """The shape of an encoder. Raises ValueError for one that can't be built."""

    image: tuple[int, int, int] = (20, 20, 3)  # H, W, C: height, width, channels
    patch: int = 5  # S
    width: int = 128  # D, of the language model
    encoder: str = "transformer"
    layers: int = 2  # transformer only, as the rest
    heads: int = 4
    hidden: int = 256  # F

    def __post_init__(self) -> None:
        for name in ("patch", "width", "layers", "heads", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if len(self.image) != 3 or min(self.image) < 1:
            raise ValueError(
                f"image is {self.image}; it must be three numbers, each at least 1: height, width, channels"
            )
        if self.image[0] % self.patch or self.image[1] % self.patch:
            raise ValueError(
                f"patch is {self.patch}; it must divide both sides of the picture, {self.image[0]} and {self.image[1]}"
            )
        if self.encoder not in ENCODERS:
            raise ValueError(f"encoder is {self.encoder!r}; choose one of {', '.join(ENCODERS)}")
        if self.encoder == "transformer" and self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads; change one of them")

    @property
    def rows(self) -> int:
        """R, the patches of a picture."""
        return self.image[0] // self.patch * (self.image[1] // self.patch)

    @property
    def pixels(self) -> int:
        """S·S·C, the numbers in a patch."""
        return self.patch * self.patch * self.image[2]

    @property
    def blocks(self) -> LanguageConfig:
        """The encoder's blocks as those of a language model without words, whose layers are all dense."""
        return LanguageConfig(
            vocabulary=1,
            context=1,
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            kv_heads=self.heads,
            experts=1,
            top_k=1,
            expert_width=self.hidden,
            expert_kind="gelu",
            dense_layers=tuple(range(self.layers)),
            position="none",
        )


@dataclass
class Vision:
    projection: Array  # (S·S·C, D)
    positions: Array  # (R, D)
    blocks: tuple[Block, ...]  # none in a linear encoder
    norm: Norm
    output: Array  # (D, D)


def initialize_vision(config: VisionConfig, rng: np.random.Generator, dtype: Any = np.float32) -> Vision:
    """Random parameters.

    Normal with standard deviation 1/√(inputs), so that products keep their size; positions 0.5, beside which the patches
    of a dark picture are no larger; blocks as in `parameters.initialize`; gains 1.
    """

    def normal(*shape: int, std: float) -> Array:
        return (std * rng.standard_normal(shape)).astype(dtype)

    D = config.width
    blocks = () if config.encoder == "linear" else parameters.initialize(config.blocks, rng, dtype).blocks
    return Vision(
        normal(config.pixels, D, std=config.pixels**-0.5),
        normal(config.rows, D, std=0.5),
        blocks,
        Norm(np.ones(D, dtype), None),
        normal(D, D, std=D**-0.5),
    )


def encode(images, p: Vision, config: VisionConfig):
    """Features of pictures; backward(dfeatures) → Vision. The pictures themselves get no gradient.

    images    (B, H, W, C)  pixels in [0, 1]
    features  (B, R, D)

    Raises ValueError for pictures of another size.
    """
    if images.shape[1:] != config.image:
        raise ValueError(f"the pictures have shape {images.shape[1:]}; this encoder takes {config.image}")
    batch = len(images)
    pixels = patches(images, config.patch).reshape(batch * config.rows, config.pixels)
    e, project_back = ops.linear(pixels, p.projection)
    placed, place_back = ops.add_positions(e.reshape(batch, config.rows, config.width), p.positions)
    x = placed.reshape(e.shape)
    block_backs = []
    for block in p.blocks:
        x, block_back = encoder_block(x, block, config.blocks, batch)
        block_backs.append(block_back)
    n, norm_back = normalize(x, p.norm)
    rows, output_back = ops.linear(n, p.output)

    def backward(dfeatures):
        dn, doutput = output_back(dfeatures.reshape(rows.shape))
        dx, dnorm = norm_back(dn)
        dblocks = []
        for block_back in reversed(block_backs):
            dx, dblock = block_back(dx)
            dblocks.append(dblock)
        de, dpositions = place_back(dx.reshape(placed.shape))
        _, dprojection = project_back(de.reshape(e.shape))
        return Vision(dprojection, dpositions, tuple(reversed(dblocks)), dnorm, doutput)

    return rows.reshape(placed.shape), backward


def encoder_block(x, p: Block, config: LanguageConfig, batch: int):
    """middle = x + attention(norm(x)),  y = middle + feed_forward(norm(middle)); x and y (N, D)."""
    n, attention_norm_back = normalize(x, p.attention_norm)
    a, attention_back = attention(n, p.attention, config, batch)
    middle = x + a
    m, mixture_norm_back = normalize(middle, p.mixture_norm)
    f, experts_back = feed_forward(m, p.mixture.experts, config)
    y = middle + f

    def backward(dy):
        dm, dexperts = experts_back(dy)
        dmiddle, dmixture_norm = mixture_norm_back(dm)
        dmiddle += dy
        dn, dattention = attention_back(dmiddle)
        dx, dattention_norm = attention_norm_back(dn)
        dx += dmiddle
        return dx, Block(dattention_norm, None, dattention, dmixture_norm, None, Mixture(None, dexperts, None))

    return y, backward


def attention(x, p: Any, config: LanguageConfig, batch: int):
    """Self-attention among the rows of each of B = `batch` pictures, all to all; p an `Attention`, x and y (N, D)."""
    shape = batch, len(x) // max(batch, 1), config.heads, config.width // config.heads  # (B, R, H, P)

    def heads(weight):
        rows, linear_back = ops.linear(x, weight)

        def backward(dheads):
            return linear_back(dheads.swapaxes(1, 2).reshape(rows.shape))

        return rows.reshape(shape).swapaxes(1, 2), backward

    q, query_back = heads(p.query)
    k, key_back = heads(p.key)
    v, value_back = heads(p.value)
    a, attention_back = full_attention(q, k, v)
    y, output_back = ops.linear(a.swapaxes(1, 2).reshape(x.shape), p.output)

    def backward(dy):
        da, doutput = output_back(dy)
        dq, dk, dv = attention_back(da.reshape(shape).swapaxes(1, 2))
        dx_value, dvalue = value_back(dv)
        dx_key, dkey = key_back(dk)
        dx_query, dquery = query_back(dq)
        return dx_query + dx_key + dx_value, Attention(dquery, dkey, dvalue, doutput)

    return y, backward
