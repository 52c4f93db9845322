"""Pictures as rows for a language model: the operations, the encoder, and a small model that learns to write captions."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tinymoe import ops, optim
from tinymoe.data.pictures import encode_captions, shapes
from tinymoe.data.windows import Batch
from tinymoe.gradcheck import check_gradients
from tinymoe.models.config import ENCODERS, FUSIONS, LanguageConfig, VisionConfig
from tinymoe.models.initialise import initialize
from tinymoe.models.initialise import vision as new_vision
from tinymoe.models.language import loss
from tinymoe.models.parameters import Vision
from tinymoe.models.vision import encode
from tinymoe.ops import full_attention, fuse_additive, fuse_prefix, text_rows
from tinymoe.tree import named, with_leaves

RNG = np.random.default_rng(8)
SMALL: dict[str, Any] = {"image": (4, 6, 3), "patch": 2, "width": 12, "heads": 3, "hidden": 5}
every_encoder = pytest.mark.parametrize("encoder", ENCODERS)


# --- the operations -----------------------------------------------------------------------------------------


def test_the_last_position_of_causal_attention_sees_all():
    q, k, v = RNG.standard_normal((2, 6, 5, 4)), *RNG.standard_normal((2, 2, 3, 5, 4))
    causal, _ = ops.causal_attention(q, k, v)
    full, _ = full_attention(q[:, :, -1:], k, v)
    np.testing.assert_allclose(full, causal[:, :, -1:], rtol=1e-13)


def test_keys_in_another_order_give_the_same():
    q, k, v = RNG.standard_normal((3, 2, 2, 5, 4))
    order = RNG.permutation(5)
    np.testing.assert_allclose(full_attention(q, k[:, :, order], v[:, :, order])[0], full_attention(q, k, v)[0])


def test_a_single_key_is_all_there_is_to_see():
    q, (k, v) = RNG.standard_normal((2, 2, 3, 4)), RNG.standard_normal((2, 2, 2, 1, 4))
    y, backward = full_attention(q, k, v)
    np.testing.assert_array_equal(y, np.broadcast_to(v, y.shape))
    dq, dk, _ = backward(np.ones_like(y))
    assert max(np.abs(dq).max(), np.abs(dk).max()) < 1e-14  # whatever its score, its weight is 1


def test_scores_far_from_zero_do_not_overflow():
    q, k, v = RNG.standard_normal((3, 2, 2, 5, 4))
    y, backward = full_attention(1e4 * q, k, v)
    assert np.isfinite(y).all()
    assert all(np.isfinite(g).all() for g in backward(y))


def test_heads_that_do_not_divide_are_refused():
    q, k = np.zeros((1, 4, 2, 3)), np.zeros((1, 3, 2, 3))
    with pytest.raises(ValueError, match="3 key/value heads do not divide 4"):
        full_attention(q, k, k)


def test_fusing_by_hand():
    features, text = np.array([[[1.0, 2.0], [3.0, 6.0]]]), np.array([[[10.0, 20.0]]])
    assert fuse_prefix(features, text)[0].tolist() == [[[1, 2], [3, 6], [10, 20]]]
    assert fuse_additive(features, text)[0].tolist() == [[[12, 24]]]


def test_what_a_prefix_is_put_before_comes_back_whole():
    features, text = RNG.standard_normal((2, 3, 4)), RNG.standard_normal((2, 5, 4))
    fused, fuse_back = fuse_prefix(features, text)
    back, rows_back = text_rows(fused, 3)
    np.testing.assert_array_equal(back, text)
    dfeatures, dtext = fuse_back(*rows_back(np.ones_like(text)))
    assert not dfeatures.any()  # without a block between them the text has not seen the picture
    assert (dtext == 1).all()


@pytest.mark.parametrize("fuse", [fuse_prefix, fuse_additive])
@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 3, 4)], ids=["another width", "another batch"])
def test_only_pairs_of_one_width_are_fused(fuse, shape):
    """Also those that broadcasting would let through: one picture for all texts would get a gradient of a wrong shape."""
    with pytest.raises(ValueError, match="one B and one D"):
        fuse(np.zeros(shape), np.zeros((2, 6, 4)))


def test_other_impossible_inputs_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        fuse_additive(np.zeros((2, 0, 4)), np.zeros((2, 6, 4)))
    for rows in (-1, 4):
        with pytest.raises(ValueError, match=rf"have {rows} rows; it can have 0 to 3"):
            text_rows(np.zeros((2, 3, 4)), rows)


# --- the encoder --------------------------------------------------------------------------------------------


def setup(encoder, batch=3, dtype=np.float64):
    config = VisionConfig(**SMALL, encoder=encoder)
    params = new_vision(config, np.random.default_rng(0).standard_normal, dtype)
    return np.random.default_rng(1).random((batch, *config.image)).astype(dtype), params, config


def encode_leaves(images, params, config):
    """The encoder as a function of its parameters' arrays, for the checker."""

    def encoder(*leaves):
        y, backward = encode(images, with_leaves(params, dict(zip(named(params), leaves, strict=True))), config)
        return y, lambda dy: tuple(named(backward(dy)).values())

    return encoder


@every_encoder
@pytest.mark.parametrize("batch", [3, 1, 0])
@pytest.mark.parametrize(("method", "tolerance"), [("central", 1e-7), ("complex", 1e-12)])
def test_every_parameter_has_the_right_gradient(encoder, batch, method, tolerance):
    images, params, config = setup(encoder, batch)
    leaves = named(params)
    options = {"method": method, "tolerance": tolerance, "names": list(leaves)}
    report = check_gradients(encode_leaves(images, params, config), *leaves.values(), **options)
    assert report.ok, report


@every_encoder
def test_a_gradient_has_the_type_and_dtype_of_the_parameters(encoder):
    images, params, config = setup(encoder, dtype=np.float32)
    features, backward = encode(images, params, config)
    gradient = backward(np.ones_like(features))
    assert features.shape == (3, config.rows, config.width)
    assert isinstance(gradient, Vision)
    assert [(n, a.shape) for n, a in named(gradient).items()] == [(n, a.shape) for n, a in named(params).items()]
    assert {a.dtype for a in (features, *named(gradient).values())} == {np.dtype(np.float32)}


@every_encoder
def test_patches_see_each_other_through_attention_only(encoder):
    images, params, config = setup(encoder)
    other = images.copy()
    other[:, -1, -1] += 1  # a corner of the last patch
    change = np.abs(encode(other, params, config)[0] - encode(images, params, config)[0]).max((0, 2))
    assert change[-1] > 1e-3
    assert ((change[:-1] > 1e-6) == (encoder == "transformer")).all()


@every_encoder
def test_a_batch_is_its_pictures_one_by_one(encoder):
    images, params, config = setup(encoder)
    apart = [encode(image[None], params, config)[0][0] for image in images]
    np.testing.assert_allclose(encode(images, params, config)[0], apart, rtol=1e-10, atol=1e-12)


@every_encoder
def test_features_begin_at_the_size_of_1(encoder):
    """Beside embeddings of their own, 0.5, they neither vanish nor drown the text where they are added to it."""
    config = VisionConfig(encoder=encoder)
    params = new_vision(config, np.random.default_rng(0).standard_normal, np.float32)
    features, _ = encode(np.random.default_rng(1).random((4, *config.image), np.float32), params, config)
    assert 0.8 < np.sqrt((features * features).mean()) < 1.25


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": 0}, "patch is 0; it must be at least 1"),
        ({"patch": 3}, "divide both sides of the picture, 4 and 6"),
        ({"image": (4, 6)}, "three numbers"),
        ({"image": (4, 0, 3)}, "each at least 1"),
        ({"encoder": "convolution"}, "choose one of linear, transformer"),
        ({"heads": 5}, "not divisible by 5 heads"),
    ],
)
def test_a_shape_that_can_not_be_built_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        VisionConfig(**{**SMALL, **change})


def test_pictures_of_another_size_are_refused():
    _, params, config = setup("linear")
    with pytest.raises(ValueError, match=r"shape \(6, 4, 3\); this encoder takes \(4, 6, 3\)"):
        encode(np.zeros((2, 6, 4, 3)), params, config)


# --- a picture and its caption -------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", FUSIONS)
def test_training_lowers_the_loss_and_the_pictures_help(fusion):
    """The captions are the names of the colours: with the wrong pictures they can be spelt, but not guessed."""
    pictures = shapes(train=300, val=0, held_out=0).train
    ids, targets, mask = encode_captions([pictures.names["colour"][i] for i in pictures.labels["colour"]])
    small = LanguageConfig(layers=1, width=32, heads=2, kv_heads=2, experts=2, top_k=1, expert_width=32)
    vision = VisionConfig(pictures.images.shape[1:], 10, 32, layers=1, heads=2, hidden=32, fusion=fusion)
    config = replace(small, tied=False, vision=vision)
    rng = np.random.default_rng(0)
    params = initialize(config, rng)
    parameters = named(params)
    slots = {name: optim.new_slots("adamw", p) for name, p in parameters.items()}
    losses = []
    for step in range(1, 161):
        rows = rng.integers(0, len(pictures), 32)
        (_, parts), backward = loss(params, config, Batch(ids, targets, mask, pictures.images).take(rows))
        losses.append(parts.cross_entropy)
        for name, gradient in named(backward(np.float32(1))).items():
            optim.adamw(parameters[name], gradient, slots[name], lr=0.005, step=step)
    assert losses[-1] < 0.5 * losses[0]

    right, wrong = (
        loss(params, config, Batch(ids, targets, mask, images))[0][1].cross_entropy
        for images in (pictures.images, pictures.images[::-1])
    )
    assert right < 0.5 * wrong


def test_pictures_and_encoder_belong_together():
    config = LanguageConfig(layers=1, width=12, heads=2, kv_heads=2, vision=VisionConfig((4, 4, 1), 2, 12, "linear"))
    params = initialize(config, np.random.default_rng(0))
    with pytest.raises(ValueError, match="needs a picture for each text"):
        loss(params, config, Batch(*np.zeros((2, 1, 2), int)))
    with pytest.raises(ValueError, match="width 12; it must be the model's, 16"):
        LanguageConfig(width=16, heads=2, kv_heads=2, vision=VisionConfig((4, 4, 1), 2, 12, "linear"))
