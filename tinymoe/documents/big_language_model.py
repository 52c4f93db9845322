"""《大语言模型原理基础与前沿：通过稀疏MoE扩展视觉语言模型》 §3: a language model in four steps.

    p = new_language_model(rng)
    logits, backward = big_language_model(texts, p)                            §3.1  text → vector → embedding → hidden → output
    y, backward = mix_of_experts(x, expert_models, gate, k)                    §3.2  the hidden layers are made of these
    pruned = sparsify(p, sparsity_level)                                       §3.3  every expert weight by `sparse_matrix`
    logits, backward = visual_language_model(images, texts, v)                 §3.4  image feature + text feature

What is wrong there:
- `mix_of_experts` unpacks `for w, output in expert_outputs`, but nobody computes a w: with two rows it silently multiplies
  the first row of each output by the second, with any other number it fails. Here a gate computes them, per row, and only
  the k best experts run;
- `sparse_matrix` drops the columns of what it keeps, so that the matrix can't be rebuilt, and never uses its
  `sparsity_level`. Here the level is met exactly, by cutting the smallest weights, and CSR keeps the columns;
- `image_feature + text_feature` needs features of one width, or broadcasts one into nonsense. Here both are projected to
  the model's width first. And the sum went into a function that begins with `text_to_vector`: here it enters behind the
  embedding;
- nothing lets a position see another. Here each hidden layer looks at the position before, so that the output at a
  position, the prediction of the next byte, depends on a few bytes up to there, and on none behind.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from ..ops import combine, cross_entropy, dispatch, embedding, group_by_expert, linear, token_shift, top_k_gate
from ..sparse import CSR, prune
from ..tree import tree_map
from ..types import Array
from .layers import Dense, ExpertNetwork, new_dense, new_expert

EDGE = 0  # the byte that stands before the first one of a text, and behind its last
VOCABULARY = 256


@dataclass
class HiddenLayer:
    """x + mixture of experts of (x and the position before it)"""

    shift: Array  # (D,) how much of the position before, per channel
    gate: Array  # (D, E)
    experts: tuple[ExpertNetwork, ...]

    def forward(self, x, k: int):
        """x (B, T, D) → y (B, T, D)"""
        shifted, shift_back = token_shift(x, self.shift)
        mixed, mix_back = mix_of_experts(shifted.reshape(-1, x.shape[2]), self.experts, self.gate, k)
        y = x + mixed.reshape(x.shape)

        def backward(dy):  # read upwards
            dmixed, dexperts, dgate = mix_back(dy.reshape(-1, dy.shape[2]))
            dx, dshift = shift_back(dmixed.reshape(dy.shape))
            return dx + dy, HiddenLayer(dshift, dgate, dexperts)

        return y, backward


@dataclass
class BigLanguageModel:
    embedding: Array  # (V, D)
    hidden_layers: tuple[HiddenLayer, ...]
    output_layer: Dense  # (D, V)


@dataclass
class VisualLanguageModel:
    image_layer: Dense  # (H·W·C, D)
    language: BigLanguageModel


def new_language_model(
    rng: np.random.Generator, width: int = 32, layers: int = 2, experts: int = 4, hidden: int = 64
) -> BigLanguageModel:
    """`hidden` is the width inside an expert."""
    return BigLanguageModel(
        rng.standard_normal((VOCABULARY, width)),
        tuple(
            HiddenLayer(
                rng.random(width),
                rng.standard_normal((width, experts)) / np.sqrt(width),
                tuple(new_expert(rng, width, hidden, width) for _ in range(experts)),
            )
            for _ in range(layers)
        ),
        new_dense(rng, width, VOCABULARY),
    )


def new_visual_language_model(rng: np.random.Generator, pixels: int, language: BigLanguageModel) -> VisualLanguageModel:
    """`pixels` is the number of values of an image, H·W·C; the width is the language model's."""
    return VisualLanguageModel(new_dense(rng, pixels, language.embedding.shape[1]), language)


def text_to_vector(data: Collection[str]) -> Array:
    """Texts as their UTF-8 bytes, int (B, T): an EDGE byte, the text, and EDGE again up to the longest text's length.

    Raises ValueError for a text that holds the EDGE byte, and for a single text in place of several.
    """
    if isinstance(data, str):
        raise ValueError("data is one text; a sequence of texts is needed: [text]")
    coded = [str(text).encode() for text in data]
    if any(EDGE in text for text in coded):
        raise ValueError(f"a text holds the byte {EDGE}, which stands for the edges of texts; all others are allowed")
    ids = np.full((len(coded), 1 + max(map(len, coded), default=0)), EDGE, np.int64)
    for row, text in zip(ids, coded, strict=True):
        row[1 : 1 + len(text)] = np.frombuffer(text, np.uint8)
    return ids


def next_bytes(ids: Array) -> Array:
    """What should follow each position (B, T): the next byte, EDGE behind the last, −100 (ignored) behind that."""
    following = np.concatenate([ids[:, 1:], np.full((len(ids), 1), EDGE)], axis=1)
    behind = (ids == EDGE) & (np.arange(ids.shape[1]) > 0)
    return np.where(behind, -100, following)


def big_language_model(data: Collection[str], p: BigLanguageModel, k: int = 2):
    """§3.1, for a batch of texts: at each position the scores of the byte that follows.

    data    B texts; see `text_to_vector` for T
    logits  (B, T, V)

    `backward(dlogits)` returns a `BigLanguageModel`.
    """
    input_vector = text_to_vector(data)
    text_feature, embed_back = embed(input_vector, p.embedding)
    logits, layers_back = hidden_and_output(text_feature, p, k)

    def backward(dlogits):  # read upwards
        dfeature, dhidden, doutput = layers_back(dlogits)
        (dembedding,) = embed_back(dfeature)
        return BigLanguageModel(dembedding, dhidden, doutput)

    return logits, backward


def embed(ids, table):
    """The embedding layer, for ids (B, T): y (B, T, D)."""
    y, embedding_back = embedding(ids.reshape(-1), table)

    def backward(dy):
        return embedding_back(dy.reshape(-1, dy.shape[2]))

    return y.reshape(*ids.shape, table.shape[1]), backward


def hidden_and_output(feature, p: BigLanguageModel, k: int):
    """What follows the embedding layer: features (B, T, D), of text or of text and image, to logits (B, T, V)."""
    x, hidden_backs = feature, []
    for layer in p.hidden_layers:
        x, layer_back = layer.forward(x, k)
        hidden_backs.append(layer_back)
    rows, output_back = p.output_layer.forward(x.reshape(-1, feature.shape[2]))

    def backward(dlogits):  # read upwards
        dx, doutput = output_back(dlogits.reshape(-1, dlogits.shape[2]))
        dfeature = dx.reshape(feature.shape)
        dhidden: list[HiddenLayer] = []
        for layer_back in reversed(hidden_backs):
            dfeature, dlayer = layer_back(dfeature)
            dhidden.append(dlayer)
        return dfeature, tuple(reversed(dhidden)), doutput

    return rows.reshape(*feature.shape[:2], rows.shape[1]), backward


def mix_of_experts(input_vector, expert_models, gate, k: int):
    """§3.2 and §4.4: the weighted sum of what the k best experts of each row return.

        w, S = top_k_gate(x gate)        y_n = Σ_{i∈S_n} w_ni expert_i(x_n)
        dx_n = Σ_{i∈S_n} (through expert i) + gate dz_n

    An expert is any object whose `forward(rows)` returns `outputs, backward`, with backward(doutputs) → drows, dexpert.

    input_vector   (N, D)
    expert_models  E objects
    gate           (D, E)
    y              (N, D)  or as wide as the experts' outputs

    `backward(dy)` returns dx, a tuple of the experts' gradients, dgate. Raises ValueError unless 1 ≤ k ≤ E.
    """
    scores, gate_back = linear(input_vector, gate)
    (weights, chosen), top_k_back = top_k_gate(scores, k, renormalize=k > 1)
    assignment = group_by_expert(chosen, len(expert_models))
    rows, dispatch_back = dispatch(input_vector, assignment)
    ends = np.cumsum(assignment.counts)[:-1]
    parts = zip(expert_models, np.split(rows, ends), strict=True)
    expert_outputs, expert_backs = zip(*(model.forward(part) for model, part in parts), strict=True)
    mixed_output, combine_back = combine(np.concatenate(expert_outputs), weights, assignment)

    def backward(dy):  # read upwards
        doutputs, dweights = combine_back(dy)
        dparts = zip(expert_backs, np.split(doutputs, ends), strict=True)
        drows, dexperts = zip(*(back(part) for back, part in dparts), strict=True)
        (dx_experts,) = dispatch_back(np.concatenate(drows))
        dx_gate, dgate = gate_back(*top_k_back(dweights))
        return dx_experts + dx_gate, dexperts, dgate

    return mixed_output, backward


def sparse_matrix(matrix: Array, sparsity_level: float) -> CSR:
    """§3.3: the matrix without its smallest entries, exactly round(sparsity_level · size) of them, as CSR."""
    return prune(matrix, sparsity_level)


def sparsify(p: BigLanguageModel, sparsity_level: float) -> BigLanguageModel:
    """§3.3: `sparse_matrix` of every expert's weights. The model runs, and trains on, with these; what was cut stays 0."""

    def cut(leaf):
        return sparse_matrix(leaf, sparsity_level) if leaf.ndim == 2 else leaf  # biases stay dense

    layers = (replace(layer, experts=tree_map(cut, layer.experts)) for layer in p.hidden_layers)
    return replace(p, hidden_layers=tuple(layers))


def visual_language_model(image, text: Collection[str], p: VisualLanguageModel, k: int = 2):
    """§3.4: combined_feature = image_feature + text_feature, at every position of the text.

    image   (B, H, W, C)  or (B, anything), one for each text
    text    B texts
    logits  (B, T, V)     as in `big_language_model`

    `backward(dlogits)` returns dimage and a `VisualLanguageModel`. Raises ValueError when there are not equally many.
    """
    if len(image) != len(text):
        raise ValueError(f"there are {len(image)} images and {len(text)} texts; one text is needed for each image")
    pixels = image.reshape(len(image), p.image_layer.weight.shape[0])
    image_feature, image_back = p.image_layer.forward(pixels)
    text_feature, embed_back = embed(text_to_vector(text), p.language.embedding)
    combined_feature = image_feature[:, None] + text_feature
    logits, layers_back = hidden_and_output(combined_feature, p.language, k)

    def backward(dlogits):  # read upwards
        dfeature, dhidden, doutput = layers_back(dlogits)
        (dembedding,) = embed_back(dfeature)
        dlanguage = BigLanguageModel(dembedding, dhidden, doutput)
        dpixels, dimage_layer = image_back(dfeature.sum(1))
        return dpixels.reshape(image.shape), VisualLanguageModel(dimage_layer, dlanguage)

    return logits, backward


def language_loss(p: BigLanguageModel, text: Collection[str], k: int = 2):
    """The mean cross-entropy of every next byte, in nats; backward(dloss) returns a `BigLanguageModel`."""
    logits, model_back = big_language_model(text, p, k)
    loss, loss_back = next_byte_loss(logits, text)

    def backward(dloss):
        return model_back(*loss_back(dloss))

    return loss, backward


def caption_loss(p: VisualLanguageModel, image, text: Collection[str], k: int = 2):
    """The same for texts under images; backward(dloss) returns a `VisualLanguageModel`."""
    logits, model_back = visual_language_model(image, text, p, k)
    loss, loss_back = next_byte_loss(logits, text)

    def backward(dloss):
        _, dp = model_back(*loss_back(dloss))
        return dp

    return loss, backward


def next_byte_loss(logits, text: Collection[str]):
    """logits (B, T, V) against the texts they were made from."""
    targets = next_bytes(text_to_vector(text))
    loss, loss_back = cross_entropy(logits.reshape(-1, logits.shape[2]), targets.reshape(-1))

    def backward(dloss):
        (dlogits,) = loss_back(dloss)
        return (dlogits.reshape(logits.shape),)

    return loss, backward
