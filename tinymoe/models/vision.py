"""A picture as rows that a language model can read: one for each patch, of the width of the text's rows.

    x = patches(images) · projection + positions
    for each block of a transformer encoder:   x = x + attention(norm(x));   x = x + feed_forward(norm(x))
    features = norm(x) · output

The blocks are those of the language model, but every patch sees every other, and they have no router. How features
meet the text is in `ops/fusion.py`.

Letters besides the usual ones: S pixels on a side of a patch · R patches (rows) of a picture · N = B·R rows.

Source: Dosovitskiy et al. 2021 (ViT), eq. 1–4, without the class token: the language model reads all patches.
"""

import numpy as np

from .. import ops
from ..data.pictures import patches
from ..data.windows import Batch
from ..ops import fuse_additive, fuse_prefix
from .blocks import attention, feed_forward, normalize
from .config import LanguageConfig, VisionConfig, encoder_blocks
from .parameters import Block, Mixture, Vision
from .routers import unchanged


def with_picture(x, batch: Batch, p: Vision | None, config: LanguageConfig):
    """Fuse the rows x (B·T, D) of a batch of texts with what the encoder makes of their pictures.

    Returns (rows, the rows' ids, their mask or None), backward(drows) → (dx, Vision). The rows of a picture have id 0.
    Raises ValueError when a model with an encoder gets no pictures, or one without gets some.
    """
    ids, mask, images = batch.ids, batch.mask, batch.images
    if (p is None) != (images is None):
        raise ValueError("a model with an image encoder needs a picture for each text, and only such a model takes any")
    seen, flat = ids.reshape(-1), None if mask is None else mask.reshape(-1)
    if p is None or config.vision is None:
        y, same_back = unchanged(x)
        return (y, seen, flat), lambda dy: (*same_back(dy), None)
    rows = config.vision.rows
    features, encode_back = encode(images, p, config.vision)
    prefix = config.vision.fusion == "prefix"
    fused, fuse_back = (fuse_prefix if prefix else fuse_additive)(features, x.reshape(len(ids), -1, config.width))
    if prefix:
        seen = np.concatenate([np.zeros((len(ids), rows), ids.dtype), ids], 1).reshape(-1)
        flat = None if mask is None else np.concatenate([np.ones((len(ids), rows), bool), mask], 1).reshape(-1)

    def backward(dy):
        dfeatures, dtext = fuse_back(dy.reshape(fused.shape))
        return dtext.reshape(x.shape), encode_back(dfeatures)

    return (fused.reshape(-1, config.width), seen, flat), backward


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
        x, block_back = encoder_block(x, block, encoder_blocks(config), batch)
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
        blocks = tuple(reversed(dblocks))
        return Vision(projection=dprojection, positions=dpositions, blocks=blocks, norm=dnorm, output=doutput)

    return rows.reshape(placed.shape), backward


def encoder_block(x, p: Block, config: LanguageConfig, batch: int):
    """middle = x + attention(norm(x)),  y = middle + feed_forward(norm(middle)); x and y (N, D)."""
    n, attention_norm_back = normalize(x, p.attention_norm)
    a, attention_back = attention(n, p.attention, config, batch, ops.full_attention)
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
        dmixture = Mixture(experts=dexperts)
        return dx, Block(
            attention_norm=dattention_norm, attention=dattention, mixture_norm=dmixture_norm, mixture=dmixture
        )

    return y, backward
