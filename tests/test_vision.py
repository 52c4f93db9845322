"""Pictures as rows for a language model: the operations, the encoder, and a small model that learns to write captions."""

from typing import Any

import numpy as np
import pytest

from tinymoe import ops, optim
from tinymoe.cases import Case
from tinymoe.data.images import encode_captions, shapes
from tinymoe.gradcheck import check_gradients
from tinymoe.models.language import block, normalize
from tinymoe.models.parameters import Language, LanguageConfig, initialize
from tinymoe.models.routers import Situation
from tinymoe.models.vision import ENCODERS, Vision, VisionConfig, encode, initialize_vision
from tinymoe.ops.cross import full_attention, fuse_additive, fuse_prefix, text_rows
from tinymoe.tree import named, with_leaves

RNG = np.random.default_rng(8)
SMALL: dict[str, Any] = {"image": (4, 6, 3), "patch": 2, "width": 12, "heads": 3, "hidden": 5}
every_encoder = pytest.mark.parametrize("encoder", ENCODERS)


def cases():
    normal = np.random.default_rng(7).standard_normal
    for name, b, h, g, t, s, p in (
        ("multi-head", 2, 3, 3, 5, 5, 4),
        ("grouped, more queries than keys", 2, 6, 2, 7, 4, 3),
        ("multi-query, more keys than queries", 3, 4, 1, 2, 6, 5),
        ("no queries", 2, 2, 1, 0, 3, 4),
        ("no keys", 2, 2, 1, 3, 0, 4),
        ("no sequences", 0, 2, 1, 3, 5, 4),
    ):
        yield Case(name, full_attention, (normal((b, h, t, p)), normal((b, g, s, p)), normal((b, g, s, p))))
    for name, b, r, t, d in (
        ("more rows than text", 2, 5, 3, 4),
        ("one row", 3, 1, 4, 2),
        ("no text", 2, 3, 0, 5),
        ("no sequences", 0, 2, 3, 4),
    ):
        yield Case(name, fuse_prefix, (normal((b, r, d)), normal((b, t, d))))
        yield Case(name, fuse_additive, (normal((b, r, d)), normal((b, t, d))))
        yield Case(name, text_rows, (normal((b, r + t, d)), r))
    yield Case("no prefix", text_rows, (normal((2, 3, 4)), 0))


CASES = list(cases())
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def as_dtype(values, dtype):
    return [v.astype(dtype) if isinstance(v, np.ndarray) else v for v in values]


# --- the operations -----------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize(("method", "tolerance"), [("central", 1e-7), ("complex", 1e-12)])
def test_gradient(case, method, tolerance):
    report = check_gradients(case.operation, *case.inputs, method=method, tolerance=tolerance)
    assert report.ok, report


@every_case
def test_float32_stays_float32_and_loses_no_more_than_rounding(case):
    y64, _ = case.operation(*case.inputs)
    y32, backward = case.operation(*as_dtype(case.inputs, np.float32))
    assert {a.dtype for a in (y32, *backward(np.ones_like(y32)))} == {np.dtype(np.float32)}
    np.testing.assert_allclose(y32, y64, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("case", [c for c in CASES if c.operation is full_attention and c.name != "no keys"], ids=str)
def test_pytorch_agrees_on_attention(case):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; pip install -e .[parity] to compare with it")
    q, k, v = (torch.tensor(a, requires_grad=True) for a in case.inputs)
    repeated = [a.repeat_interleave(q.shape[1] // k.shape[1], 1) for a in (k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(q, *repeated)
    y, backward = full_attention(*case.inputs)
    dy = RNG.standard_normal(y.shape)
    gradients = torch.autograd.grad(expected, (q, k, v), torch.tensor(dy))
    for ours, theirs in zip((y, *backward(dy)), (expected, *gradients), strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-10, atol=1e-13)


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
    params = initialize_vision(config, np.random.default_rng(0), dtype)
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


def torch_encode(torch, images, p, config):
    """With PyTorch's own parts: a patch's projection is a convolution whose stride is its size."""
    functional = torch.nn.functional
    kernel = p["projection"].reshape(config.patch, config.patch, -1, config.width).permute(3, 2, 0, 1)
    x = functional.conv2d(images.permute(0, 3, 1, 2), kernel, stride=config.patch).flatten(2).mT + p["positions"]
    heads = config.heads, config.width // config.heads

    def norm(x, gain):
        return functional.rms_norm(x, gain.shape, gain, eps=1e-6)

    for i in range(config.layers if config.encoder == "transformer" else 0):
        of_block = {name.removeprefix(f"blocks.{i}."): a for name, a in p.items()}
        n = norm(x, of_block["attention_norm.gain"])
        q, k, v = ((n @ of_block[f"attention.{name}"]).unflatten(-1, heads) for name in ("query", "key", "value"))
        q, k, v = (a.transpose(1, 2) for a in (q, k, v))
        a = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + a @ of_block["attention.output"]
        up, down = of_block["mixture.experts.up"][0], of_block["mixture.experts.down"][0]
        x = x + functional.gelu(norm(x, of_block["mixture_norm.gain"]) @ up, approximate="tanh") @ down
    return norm(x, p["norm.gain"]) @ p["output"]


@every_encoder
def test_pytorch_agrees_on_the_encoder(encoder):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; pip install -e .[parity] to compare with it")
    images, params, config = setup(encoder)
    theirs = {name: torch.tensor(leaf, requires_grad=True) for name, leaf in named(params).items()}
    expected = torch_encode(torch, torch.tensor(images), theirs, config)
    features, backward = encode(images, params, config)
    np.testing.assert_allclose(features, expected.detach().numpy(), rtol=0, atol=1e-10)
    dfeatures = RNG.standard_normal(features.shape)
    gradients = torch.autograd.grad(expected, list(theirs.values()), torch.tensor(dfeatures))
    for (name, ours), other in zip(named(backward(dfeatures)).items(), gradients, strict=True):
        size = float(other.abs().max())
        np.testing.assert_allclose(ours, other.numpy(), rtol=0, atol=1e-10 * size, err_msg=name)


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
    params = initialize_vision(config, np.random.default_rng(0))
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


# --- a picture and its caption: encoder, fusion and the blocks of the language model ---------------------------


def caption_loss(vision, language, configs, fuse, images, ids, targets):
    """Cross-entropy of captions (B, T) of pictures (B, H, W, C); backward() → (Vision, Language)."""
    vision_config, config = configs
    features, encode_back = encode(images, vision, vision_config)
    e, embedding_back = ops.embedding(ids.reshape(-1), language.embedding)
    fused, fuse_back = fuse(features, e.reshape(*ids.shape, -1))
    x = fused.reshape(-1, config.width)
    backs = []
    for p in language.blocks:
        (x, *_), block_back = block(x, p, config, Situation(len(ids), np.zeros(len(x), int)))
        backs.append(block_back)
    text, text_back = text_rows(x.reshape(fused.shape), fused.shape[1] - ids.shape[1])
    n, norm_back = normalize(text.reshape(e.shape), language.norm)
    logits, head_back = ops.linear(n, language.head)
    loss, loss_back = ops.cross_entropy(logits, targets.reshape(-1))

    def backward(dloss):
        dn, dhead = head_back(*loss_back(dloss))
        drows, dnorm = norm_back(dn)
        (dfused,) = text_back(drows.reshape(text.shape))
        dx, dblocks = dfused.reshape(x.shape), []
        for block_back in reversed(backs):
            dx, dblock = block_back(dx, 0.0)
            dblocks.append(dblock)
        dfeatures, de = fuse_back(dx.reshape(fused.shape))
        (dembedding,) = embedding_back(de.reshape(e.shape))
        return encode_back(dfeatures), Language(dembedding, None, tuple(reversed(dblocks)), dnorm, dhead)

    return loss, backward


@pytest.mark.parametrize("fuse", [fuse_prefix, fuse_additive])
def test_the_gradient_of_a_caption_reaches_every_parameter(fuse):
    images, vision, vision_config = setup("transformer")
    config = LanguageConfig(
        vocabulary=11, layers=1, width=12, heads=2, kv_heads=1, experts=3, expert_width=5, tied=False
    )
    language = initialize(config, np.random.default_rng(2), np.float64)
    ids, targets = np.random.default_rng(3).integers(0, 11, (2, 3, 4))
    both = vision, language

    def loss_of_leaves(*leaves):
        tree = with_leaves(both, dict(zip(named(both), leaves, strict=True)))
        y, backward = caption_loss(*tree, (vision_config, config), fuse, images, ids, targets)
        return y, lambda dy: tuple(named(backward(dy)).values())

    report = check_gradients(loss_of_leaves, *named(both).values(), names=list(named(both)))
    assert report.ok, report
    gradients = named(caption_loss(*both, (vision_config, config), fuse, images, ids, targets)[1](1.0))
    assert all(g.any() for g in gradients.values())


@pytest.mark.parametrize("fuse", [fuse_prefix, fuse_additive])
def test_training_lowers_the_loss_and_the_pictures_help(fuse):
    """The captions are the names of the colours: with the wrong pictures they can be spelt, but not guessed."""
    pictures = shapes(train=300, val=0, held_out=0).train
    ids, targets, _ = encode_captions([pictures.names["colour"][i] for i in pictures.labels["colour"]])
    config = LanguageConfig(layers=1, width=32, heads=2, kv_heads=2, experts=2, top_k=1, expert_width=32, tied=False)
    configs = VisionConfig(pictures.images.shape[1:], 10, 32, layers=1, heads=2, hidden=32), config
    rng = np.random.default_rng(0)
    both = initialize_vision(configs[0], rng), initialize(config, rng)
    parameters = named(both)
    slots = {name: optim.new_slots("adamw", p) for name, p in parameters.items()}
    losses = []
    for step in range(1, 121):
        rows = rng.integers(0, len(pictures), 32)
        loss, backward = caption_loss(*both, configs, fuse, pictures.images[rows], ids[rows], targets[rows])
        losses.append(loss)
        for name, gradient in named(backward(np.float32(1))).items():
            optim.adamw(parameters[name], gradient, slots[name], lr=0.01, step=step)
    assert losses[-1] < 0.5 * losses[0]

    right, wrong = (
        caption_loss(*both, configs, fuse, images, ids, targets)[0]
        for images in (pictures.images, pictures.images[::-1])
    )
    assert right < 0.5 * wrong
