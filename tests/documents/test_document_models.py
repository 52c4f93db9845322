"""The documents' own models: the printed versions fail as each docstring says; the working ones are right, and learn.

A `printed_…` function is the document's code, line by line, with NumPy in place of TensorFlow or PyTorch.
"""

from functools import partial

import numpy as np
import pytest

from tinymoe.check.trial import of_parameters
from tinymoe.check.trials import documents
from tinymoe.documents import big_language_model as d2
from tinymoe.documents import feature_experts as d0
from tinymoe.documents import lstm_experts as d2_lstm
from tinymoe.documents import sparse_gate as d1
from tinymoe.documents import sparse_weights as d3
from tinymoe.documents.fit import train
from tinymoe.documents.layers import Dense, ExpertNetwork, new_expert
from tinymoe.ops import one_hot, relu, sparse_linear
from tinymoe.sparse import COO, CSR
from tinymoe.tree import tree_map, values_of, with_values

TEXTS = np.array(["the cat sat on the mat", "a dog ran in the park", "two birds over a hill", "she reads old books"])


def rng(seed=0):
    return np.random.default_rng(seed)


def frozen(array):
    array.flags.writeable = False
    return array


def models(n=6):
    return [
        pytest.param(loss, parameters, [frozen(a) if isinstance(a, np.ndarray) else a for a in data], id=name)
        for name, loss, parameters, data in documents.models(rng(4), n)
    ]


every_model = pytest.mark.parametrize(("loss", "parameters", "data"), models())


@every_model
@pytest.mark.parametrize("method", ["central", "complex"])
def test_every_parameter_of_every_model_has_the_right_gradient(loss, parameters, data, method):
    report = of_parameters("", loss, parameters, *data).report(method, seed=0)
    assert report.ok, report


@every_model
def test_a_gradient_has_the_type_names_and_patterns_of_the_parameters(loss, parameters, data):
    gradient = loss(parameters, *data)[1](1.0)
    assert type(gradient) is type(parameters)
    of, values = values_of(gradient), values_of(parameters)
    assert [(name, g.shape) for name, g in of.items()] == [(name, v.shape) for name, v in values.items()]


@every_model
def test_float32_stays_float32(loss, parameters, data):
    single = {name: v.astype(np.float32) for name, v in values_of(parameters).items()}
    data = [a.astype(np.float32) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a for a in data]
    value, backward = loss(with_values(parameters, single), *data)
    assert value.dtype == np.float32
    assert {g.dtype for g in values_of(backward(1.0)).values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(("loss", "parameters", "data"), models(0))
def test_no_rows_cost_nothing_and_teach_nothing(loss, parameters, data):
    value, backward = loss(parameters, *data)
    assert value == 0
    assert not any(g.any() for g in values_of(backward(1.0)).values())


@pytest.mark.parametrize("method", ["central", "complex"])
@pytest.mark.parametrize("trial", list(documents.operations(rng(6))), ids=str)
def test_gradients_of_the_inputs_and_of_the_small_operations(trial, method):
    report = trial.report(method, seed=0)
    assert report.ok, report


def test_training_leaves_what_it_is_given_alone_and_repeats_to_the_bit():
    start, (x, y) = d0.SparseExpertModel(2).parameters, d0.example(rng(), 40)
    before = {name: v.copy() for name, v in values_of(start).items()}
    runs = [list(train(start, d0.squared_loss, (x, y), epochs=3, rng=rng(1))) for _ in range(2)]
    assert all(np.array_equal(v, before[name]) for name, v in values_of(start).items())
    assert [loss for _, loss in runs[0]] == [loss for _, loss in runs[1]]
    assert all(np.array_equal(v, values_of(runs[1][-1][0])[name]) for name, v in values_of(runs[0][-1][0]).items())
    with pytest.raises(ValueError, match=r"have \[39, 40\] rows"):
        next(train(start, d0.squared_loss, (x, y[1:]), epochs=1, rng=rng()))
    with pytest.raises(ValueError, match=r"have \[0\] rows"):
        next(train(start, d0.squared_loss, (x[:0], y[:0]), epochs=1, rng=rng()))
    with pytest.raises(ValueError, match="one is needed for each output"):
        d0.squared_loss(start, x, y[:, 0])  # (N, 1) − (N,) would be (N, N)


# 《稀疏专家模型》 §5.2


def printed_d0(inputs, experts, column):
    """`outputs = [expert(inputs[:, i]) …]`, summed; `column` makes the feature, as printed or as (N, 1)."""
    outputs = [expert.forward(column(inputs, i))[0] for i, expert in enumerate(experts)]
    return np.sum(np.stack(outputs), axis=0)


def with_two_axes(inputs, i):
    return inputs[:, i : i + 1]


def test_d0_as_printed_fails_at_its_first_call():
    experts = [new_expert(rng(i), 1, 64, 1) for i in range(2)]
    with pytest.raises(ValueError, match="mismatch in its core dimension"):
        printed_d0(rng().random((100, 3)), experts, lambda inputs, i: inputs[:, i])
    assert printed_d0(rng().random((100, 3)), experts, with_two_axes).shape == (100, 1)


def test_d0_as_printed_never_reads_the_third_feature_and_can_only_add():
    experts = [new_expert(rng(i), 1, 64, 1) for i in range(2)]
    inputs, other = rng(1).random((2, 100, 3))
    third, first, second, both = inputs.copy(), inputs.copy(), inputs.copy(), inputs.copy()
    third[:, 2] = other[:, 2]
    first[:, 0] = both[:, 0] = other[:, 0]
    second[:, 1] = both[:, 1] = other[:, 1]

    def acting_together(model):  # 0 for every f(x₁) + g(x₂)
        return np.abs(model(inputs) - model(first) - model(second) + model(both)).max()

    def printed(x):
        return printed_d0(x, experts, with_two_axes)

    assert np.array_equal(printed(inputs), printed(third))
    assert acting_together(printed) < 1e-14

    model = d0.SparseExpertModel(num_experts=2)
    assert np.abs(model(inputs) - model(third)).min() > 0
    assert acting_together(model) > 0.01


def test_d0_is_one_network_with_sparse_block_diagonal_weights():
    model = d0.SparseExpertModel(num_experts=2)
    x, (a, b) = rng().random((9, 3)), model.parameters.experts
    assert [e.dense1.weight.shape for e in (a, b)] == [(2, 64), (1, 64)]

    def diagonal(*blocks):
        places = np.cumsum([(0, 0), *(block.shape for block in blocks)], axis=0)
        full = np.zeros(places[-1])
        for (row, column), block in zip(places, blocks, strict=False):
            full[row : row + block.shape[0], column : column + block.shape[1]] = block
        return CSR.from_dense(full)

    first, second = diagonal(a.dense1.weight, b.dense1.weight), diagonal(a.dense2.weight, b.dense2.weight)
    assert (first.density, second.density) == (0.5, 0.5)
    h, _ = sparse_linear(x, first.data, first, np.concatenate([a.dense1.bias, b.dense1.bias]))
    y, _ = sparse_linear(relu(h)[0], second.data, second, np.concatenate([a.dense2.bias, b.dense2.bias]))
    np.testing.assert_allclose(model(x), y.mean(1, keepdims=True), rtol=1e-12)  # an untrained gate weighs all the same


def test_d0_learns_what_a_sum_over_two_features_cannot():
    inputs, targets = d0.example(rng(), 400)
    model = d0.SparseExpertModel(num_experts=2)
    curve = model.train(inputs, targets, epochs=100, learning_rate=0.03)
    assert curve[-1] < curve[0] / 5
    test_inputs, test_targets = d0.example(rng(1), 200)
    error = model.loss(test_inputs, test_targets)[0]
    # A function of features 1 and 2 can't tell the two branches apart. The best one is their mean, off by half their
    # distance, wave + x₃; x₃ has mean ¼ in the lower branch.
    wave = np.sin(2 * np.pi * test_inputs[:, 0]) + test_inputs[:, 1]
    assert error < np.mean((wave + 0.25) ** 2 / 4) / 3


@pytest.mark.parametrize("num_experts", [0, 4])
def test_d0_refuses_experts_without_a_feature(num_experts):
    with pytest.raises(ValueError, match=f"num_experts is {num_experts}; it must lie between 1 and"):
        d0.SparseExpertModel(num_experts)


def test_d0_scatter_plot_shows_feature_1_against_the_prediction():
    test_inputs = rng().random((100, 3))
    predictions = d0.SparseExpertModel(2)(test_inputs)
    (axes,) = d0.scatter(test_inputs, predictions, predictions).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Input Feature 1", "Prediction")
    _, points = axes.collections
    np.testing.assert_array_equal(points.get_offsets(), np.column_stack([test_inputs[:, 0], predictions]))


# the untitled document on the sparse gate, §5


def printed_d1(x, experts, k, nudge=0.0):
    """`weights = [expert(x).sum() …]`, detached; `nudge` (E,) is added to them, as what a gate would learn by."""
    weights = np.array([expert(x).sum() for expert in experts]) + nudge
    topk = np.argsort(-weights, kind="stable")[:k]
    return sum(experts[i](x) for i in topk)


def linear_experts(weight, bias, runs=None):
    def expert(i, x):
        if runs is not None:
            runs[i] += len(x)
        return x @ weight[i] + bias[i]

    return [partial(expert, i) for i in range(len(weight))]


def d1_example():
    model = d1.SparseExpertModel(num_experts=5, input_dim=3, output_dim=2, k=2)
    model.parameters.bias[...] = rng(1).standard_normal((5, 2))
    return model, rng(2).standard_normal((8, 3))


def test_d1_as_printed_runs_every_expert_on_every_row():
    model, x = d1_example()
    runs = np.zeros(5, int)
    printed_d1(x, linear_experts(model.parameters.weight, model.parameters.bias, runs), 2)
    assert runs.sum() == 8 * 5 + 8 * 2  # all to score them, the chosen once more

    (y, _, chosen), _ = d1.network(x, model.parameters, 2)
    idle = np.setdiff1d(np.arange(5), chosen[0])
    model.parameters.weight[idle] = np.nan  # who is not chosen for the first row does not compute on it
    np.testing.assert_allclose(model(x[:1]), y[:1], rtol=1e-12)


def test_d1_as_printed_chooses_once_for_the_whole_batch():
    model, x = d1_example()
    printed = linear_experts(model.parameters.weight, model.parameters.bias)
    rows = np.split(x, 8)
    alone = np.concatenate([printed_d1(row, printed, 2) for row in rows])
    assert np.abs(alone - printed_d1(x, printed, 2)).max() > 0.1
    np.testing.assert_allclose(np.concatenate([model(row) for row in rows]), model(x), rtol=1e-12)
    assert len(np.unique(d1.network(x, model.parameters, 2)[0][2], axis=0)) > 1


def test_d1_as_printed_detaches_the_scores_so_that_no_gate_can_learn():
    model, x = d1_example()
    printed = linear_experts(model.parameters.weight, model.parameters.bias)
    for e in range(5):
        step = 1e-4 * np.eye(5)[e]
        assert np.array_equal(printed_d1(x, printed, 2, step), printed_d1(x, printed, 2, -step))
    for k in (1, 2):  # at k = 1, too
        _, backward = d1.squared_loss(model.parameters, x, np.zeros((8, 2)), k=k, balance=0.0)
        assert np.abs(backward(1.0).keys).max() > 1e-2


def test_d1_as_printed_never_multiplies_by_the_gate():
    """k experts that agree should give their common answer, not k times it."""
    model, x = d1_example()
    model.parameters.weight[...] = model.parameters.weight[0]
    model.parameters.bias[...] = model.parameters.bias[0]
    answer = x @ model.parameters.weight[0] + model.parameters.bias[0]
    printed = linear_experts(model.parameters.weight, model.parameters.bias)
    np.testing.assert_allclose(printed_d1(x, printed, 2), 2 * answer)
    np.testing.assert_allclose(model(x), answer)


def test_d1_learns_what_one_linear_map_cannot():
    """Whatever the printed model chooses, its answer on a batch is one linear map: at best least squares."""
    x = rng().uniform(-1, 1, (200, 1))
    targets = np.abs(x)
    _, residual, *_ = np.linalg.lstsq(np.column_stack([x, np.ones(200)]), targets)
    model = d1.SparseExpertModel(num_experts=4, input_dim=1, output_dim=1, k=1)
    model.train(x, targets, epochs=40)
    assert np.mean((model(x) - targets) ** 2) < residual.item() / 200 / 5


def test_d1_updates_only_experts_that_were_chosen():
    model, x = d1_example()
    start = model.parameters
    (_, _, chosen), _ = d1.network(x[:1], start, 2)
    model.train(x[:1], np.zeros((1, 2)), epochs=1)
    moved = {e for e in range(5) if not np.array_equal(model.parameters.weight[e], start.weight[e])}
    assert moved == set(chosen[0].tolist())
    assert moved == {e for e in range(5) if not np.array_equal(model.parameters.bias[e], start.bias[e])}

    # Plain Adam would go on to move an expert that the first of two steps chose, and the second did not.
    both, _ = d1_example()
    in_order = next(seed for seed in range(20) if rng(seed).permutation(2).tolist() == [0, 1])
    other = next(n for n in range(8) if set(d1.network(x, start, 2)[0][2][n]) != moved)
    both.train(x[[0, other]], np.zeros((2, 2)), epochs=1, batch_size=1, rng=rng(in_order))
    (_, _, chosen), _ = d1.network(x[[other]], both.parameters, 2)
    at_rest = sorted(moved - set(chosen[0].tolist()))
    assert at_rest
    np.testing.assert_array_equal(both.parameters.weight[at_rest], model.parameters.weight[at_rest])


@pytest.mark.parametrize("k", [0, 5])
def test_k_must_lie_between_one_and_the_experts(k):
    for new in (
        lambda: d1.SparseExpertModel(4, 3, 2, k),
        lambda: d2_lstm.LSTMExperts(9, 3, 4, 4, k),
        lambda: d3.SparseExpertLanguageModel(9, 3, 4, k),
    ):
        with pytest.raises(ValueError, match=f"k is {k}; it must lie between 1 and the number of experts, 4"):
            new()


# 《大语言模型原理基础与前沿：通过稀疏MoE扩展视觉语言模型》 §3


def printed_mix(input_vector, expert_models):
    expert_outputs = [model.forward(input_vector)[0] for model in expert_models]
    return sum(w * output for w, output in expert_outputs)


def test_d2_mixture_as_printed_unpacks_weights_that_nobody_computed():
    experts = [new_expert(rng(i), 3, 4, 2) for i in range(3)]
    x = rng().standard_normal((3, 3))
    with pytest.raises(ValueError, match="too many values to unpack"):
        printed_mix(x, experts)
    product_of_rows = sum(np.prod(expert.forward(x[:2])[0], axis=0) for expert in experts)
    np.testing.assert_allclose(printed_mix(x[:2], experts), product_of_rows)  # two rows go through, as nonsense


@pytest.mark.parametrize("k", [1, 2, 3])
def test_d2_mixture_is_the_weighted_sum_of_the_best_experts(k):
    experts, gate = [new_expert(rng(i), 3, 4, 2) for i in range(3)], rng(3).standard_normal((3, 3))
    x = rng().standard_normal((6, 3))
    y, _ = d2.mix_of_experts(x, experts, gate, k)
    for n in range(6):
        e = np.exp(x[n] @ gate)
        best = np.argsort(-e)[:k]
        total = e[best].sum() if k > 1 else e.sum()
        expected = sum(e[i] / total * experts[i].forward(x[n : n + 1])[0][0] for i in best)
        np.testing.assert_allclose(y[n], expected)


def printed_sparse_matrix(matrix, sparsity_level):
    return [[value for value in row if value != 0] for row in matrix]


def test_d2_sparse_matrix_as_printed_can_not_be_rebuilt_and_ignores_the_level():
    left, right = [[5, 0, 0], [0, 0, 7]], [[0, 0, 5], [7, 0, 0]]
    assert printed_sparse_matrix(left, 0.5) == printed_sparse_matrix(right, 0.5) == [[5], [7]]
    matrix = rng().standard_normal((6, 5))
    kept = [sum(map(len, printed_sparse_matrix(matrix, level))) for level in (0.1, 0.9)]
    assert kept == [30, 30]
    for level in (0.1, 0.9):
        sparse = d2.sparse_matrix(matrix, level)
        assert sparse.nnz == 30 - round(level * 30)
        dense = sparse.to_dense()
        np.testing.assert_array_equal(dense, np.where(dense != 0, matrix, 0))
        assert np.abs(matrix[dense == 0]).max() < np.abs(sparse.data).min()


def test_d2_runs_and_trains_with_sparse_weights_and_what_was_cut_stays_cut():
    p = d2.sparsify(documents.language_model(), 0.7)
    weights = [d.weight for layer in p.hidden_layers for e in layer.experts for d in (e.dense1, e.dense2)]
    assert all(isinstance(w, CSR) and w.nnz == 20 - 14 for w in weights)
    filled = tree_map(lambda leaf: leaf.to_dense() if isinstance(leaf, CSR) else leaf, p)
    np.testing.assert_allclose(d2.big_language_model(TEXTS, p)[0], d2.big_language_model(TEXTS, filled)[0])
    *_, (trained, loss) = train(p, d2.language_loss, (TEXTS,), epochs=5, rng=rng())
    assert loss < d2.language_loss(p, TEXTS)[0]
    for layer, after in zip(p.hidden_layers, trained.hidden_layers, strict=True):
        old, new = layer.experts[0].dense1.weight, after.experts[0].dense1.weight
        assert isinstance(old, CSR) and isinstance(new, CSR)
        np.testing.assert_array_equal(old.indices, new.indices)
        assert np.abs(old.data - new.data).max() > 0


def test_d2_texts_become_bytes_between_edges():
    assert d2.text_to_vector(["ab", "é"]).tolist() == [[0, 97, 98], [0, 0xC3, 0xA9]]
    assert d2.text_to_vector(["a", "bcd", ""]).tolist() == [[0, 97, 0, 0], [0, 98, 99, 100], [0, 0, 0, 0]]
    following = d2.next_bytes(d2.text_to_vector(["a", "bcd", ""])).tolist()
    assert following == [[97, 0, -100, -100], [98, 99, 100, 0], [0, -100, -100, -100]]
    with pytest.raises(ValueError, match="a text holds the byte 0"):
        d2.text_to_vector(["a\0b"])
    with pytest.raises(ValueError, match="a sequence of texts is needed"):
        d2.text_to_vector("ab")


def test_d2_does_not_look_ahead_and_learns_its_texts():
    p = documents.language_model()
    one, other = (d2.big_language_model([text], p)[0][0] for text in ("abcdef", "abcxyz"))
    np.testing.assert_array_equal(one[:4], other[:4])
    assert np.abs(one[4:] - other[4:]).min(1).max() > 0
    *_, (_, loss) = train(d2.new_language_model(rng()), d2.language_loss, (TEXTS,), epochs=60, rng=rng(), batch_size=2)
    assert loss < 0.35  # of ln 256 = 5.5 at first


def printed_visual_language_model(image_feature, text_feature):
    combined_feature = image_feature + text_feature
    return d2.text_to_vector(combined_feature)  # the first line of the printed big_language_model


def test_d2_fusion_as_printed_needs_one_width_and_feeds_features_to_a_reader_of_text():
    with pytest.raises(ValueError, match="could not be broadcast"):
        printed_visual_language_model(np.ones((2, 12)), np.ones((2, 4)))
    assert (np.ones((4, 1)) + np.ones(4)).shape == (4, 4)  # or broadcasts, silently
    features = rng().random((2, 4))
    read = printed_visual_language_model(features, features)  # "[1.27…": the digits as if they were written text
    assert bytes(read[0, 1:3].astype(np.uint8)) == b"[1"


def test_d2_adds_the_image_to_every_position_of_the_text():
    p, image = documents.visual_model(), rng().random((2, 2, 2, 3))
    logits, _ = d2.visual_language_model(image, ["abc", "d"], p)
    text, _ = d2.embed(d2.text_to_vector(["abc", "d"]), p.language.embedding)
    feature = image.reshape(2, 12) @ p.image_layer.weight + p.image_layer.bias
    expected, _ = d2.hidden_and_output(text + feature[:, None], p.language, 2)
    np.testing.assert_array_equal(logits, expected)
    with pytest.raises(ValueError, match="2 images and 1 texts"):
        d2.visual_language_model(image, ["abc"], p)


def test_d2_learns_to_say_what_an_image_shows():
    colours = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
    captions = np.array(list(colours) * 10)
    base = np.array([colours[c] for c in captions])[:, None, None]
    images = np.clip(base + 0.2 * rng().standard_normal((30, 2, 2, 3)), 0, 1)
    start = d2.new_visual_language_model(rng(1), 12, d2.new_language_model(rng(2), width=16, layers=1, hidden=16))
    *_, (p, loss) = train(start, d2.caption_loss, (images, captions), epochs=25, rng=rng(3), batch_size=10)
    assert loss < 0.1
    logits, _ = d2.visual_language_model(images, ["" for _ in captions], p)
    assert [chr(c) for c in logits[:, 0].argmax(1)] == [caption[0] for caption in captions]


# the same document, §5.2


def printed_lstm_mixture(ids, expert, num_experts, expert_weights):
    """All experts are made by one `expert_model`, of the same three layers."""
    experts = [expert.forward(ids)[0] for _ in range(num_experts)]
    outputs = [np.sum(e * weight, axis=0) for e, weight in zip(experts, expert_weights, strict=True)]
    return np.mean(outputs, axis=0)


def test_d2_lstm_mixture_as_printed_is_one_expert_summed_over_the_batch():
    expert = documents.lstm_experts().experts[0]
    ids = rng().integers(0, 5, (4, 6))
    mixed = printed_lstm_mixture(ids, expert, 3, [0.5, 0.3, 0.2])
    assert mixed.shape == (6, 5)  # the four texts have become one
    np.testing.assert_allclose(mixed, expert.forward(ids)[0].sum(0) / 3)  # of one expert
    np.testing.assert_allclose(mixed.sum(-1), 4 / 3)  # and no probabilities


def test_d2_lstm_mixture_is_of_different_experts_for_each_text_and_only_they_run():
    p, ids = documents.lstm_experts(), rng().integers(0, 5, (4, 6))
    y, _ = d2_lstm.mix_of_experts(ids, p, 2)
    assert y.shape == (4, 6, 5)
    np.testing.assert_allclose(y.sum(-1), 1)
    for text, expected in zip(ids, y, strict=True):
        gate = p.gate[text[0]]
        best = np.argsort(-gate)[:2]
        weights = np.exp(gate[best]) / np.exp(gate[best]).sum()
        answers = [p.experts[i].forward(text[None])[0][0] for i in best]
        np.testing.assert_allclose(weights[0] * answers[0] + weights[1] * answers[1], expected)
        assert np.abs(answers[0] - answers[1]).max() > 0.05
        idle = p.experts[int(np.argmin(gate))]
        saved = idle.w_in.copy()
        idle.w_in[...] = np.nan
        np.testing.assert_allclose(d2_lstm.mix_of_experts(text[None], p, 2)[0][0], expected)
        idle.w_in[...] = saved
    changed = ids.copy()
    changed[:, 4:] = (changed[:, 4:] + 1) % 5
    np.testing.assert_allclose(d2_lstm.mix_of_experts(changed, p, 2)[0][:, :4], y[:, :4])  # nobody looks ahead


def test_d2_lstm_fit_reports_accuracy_and_validation():
    """Counting up or down by one, as the first token says: even up, odd down."""
    first = rng().integers(0, 12, (96, 1))
    rows = (first + np.where(first % 2, -1, 1) * np.arange(7)) % 12
    x, y = rows[:, :-1], rows[:, 1:]
    model = d2_lstm.LSTMExperts(vocab_size=12, embedding_size=6, hidden_units=16, num_experts=3)
    history = model.fit(x[:64], y[:64], epochs=10, batch_size=32, validation_data=(x[64:], y[64:]), learning_rate=0.05)
    assert [set(record) for record in history] == [{"loss", "accuracy", "val_loss", "val_accuracy"}] * 10
    assert history[-1]["val_accuracy"] > 0.9 > 0.7 > history[0]["val_accuracy"]
    assert history[-1]["loss"] < history[0]["loss"] / 4
    assert set(model.fit(x, y, epochs=1)[0]) == {"loss", "accuracy"}


# 《大语言模型原理基础与前沿：为什么采用稀疏专家模型》 §6


def printed_product(A, B):
    result = [[0] * len(B[0]) for _ in range(len(A))]
    for i, k, v in A:
        for j in range(len(B[0])):
            for _, n, w in B:
                if k == n:
                    result[i][j] += v * w
    return result


def test_d3_product_as_printed_counts_thrice_and_compares_the_wrong_index():
    a, identity = [(0, 1, 5), (1, 2, 7)], [(0, 0, 1), (1, 1, 1), (2, 2, 1)]
    assert printed_product(a, identity) == [[5, 5, 5], [7, 7, 7]]  # in all of 3 columns, the length of a triple
    assert d3.sparse_matrix_multiplication(a, identity) == a

    b = [(0, 1, 2), (2, 0, 3)]
    assert printed_product(a, b) == [[10, 10, 10], [0, 0, 0]]  # a₀₁ meets b₀₁, whose column is 1, not its row
    assert d3.sparse_matrix_multiplication(a, b) == [(1, 0, 21)]

    example = [(1, 1, 5), (2, 3, 7)]  # the document's matrix: two triples, so two rows, and row 2 has no place
    with pytest.raises(IndexError):
        printed_product(example, [(0, 1, 1), (1, 3, 1)])


def test_d3_product_equals_the_dense_one():
    a, b = (COO.from_dense(np.where(rng(i).random((4, 4)) < 0.4, rng(i).integers(1, 9, (4, 4)), 0)) for i in (1, 2))
    product = d3.sparse_matrix_multiplication(a.to_triples(), b.to_triples())
    np.testing.assert_array_equal(COO.from_triples(product, (4, 4)).to_dense(), a.to_dense() @ b.to_dense())


def printed_embedding(V, D, W):
    return W * rng().standard_normal((V, D))


def printed_experts(V, H, W):
    return [printed_embedding(V, D, W) for _ in range(H)]  # type: ignore[name-defined]  # noqa: F821 (as printed)


def test_d3_as_printed_stores_every_place_and_does_not_know_its_width():
    with pytest.raises(NameError, match="'D' is not defined"):
        printed_experts(50, 4, 0.02)
    assert np.count_nonzero(printed_embedding(50, 8, 0.02)) == 50 * 8

    embedding = d3.create_sparse_embedding(50, 8, 0.02, density=0.1)
    assert (embedding.shape, embedding.nnz) == ((50, 8), 40)
    experts = d3.create_sparse_experts(50, 4, 0.02, D=8, density=0.1)
    assert [(e.shape, e.nnz) for e in experts] == [((50, 8), 40)] * 4
    assert len({e.data.tobytes() for e in experts}) == 4


def test_d3_sparse_matrices_act_as_full_ones_of_deviation_w():
    x = rng(1).standard_normal((300, 400))
    full, sparse = (x @ d3.create_sparse_embedding(400, 300, 0.5, density).to_dense() for density in (1.0, 0.1))
    np.testing.assert_allclose([full.std(), sparse.std()], 0.5 * np.sqrt(400), rtol=0.02)


def test_d3_embedding_is_the_product_with_one_hot_rows():
    table = d3.create_sparse_embedding(6, 4, 1.0, density=0.4)
    ids = np.array([5, 0, 0, 3, 5])
    y, _ = d3.sparse_embedding(ids, table.data, table)
    np.testing.assert_array_equal(y, (one_hot(ids, 6) @ table).to_dense())
    with pytest.raises(IndexError, match="ids span -1 to 2; the table has rows 0 to 5"):
        d3.sparse_embedding(np.array([2, -1]), table.data, table)


def test_d3_is_the_mixture_of_experts_tied_to_the_output():
    p, ids = documents.sparse_weights(), rng().integers(0, 7, (3, 5))
    logits, _ = d3.language_model(ids, p, 2)
    table, experts = p.embedding.to_dense(), p.experts.to_dense().reshape(3, 6, 7)
    for row, before in ((0, 0), (1, 0), (2, 1), (4, 3)):
        x = (1 - p.shift) * table[ids[0, row]] + (p.shift * table[ids[0, before]] if row else 0)
        gate = x @ p.gate
        best = np.argsort(-gate)[:2]
        weights = np.exp(gate[best]) / np.exp(gate[best]).sum()
        np.testing.assert_allclose(logits[row], weights @ (x @ experts[best]))
    tied = [d3.create_sparse_embedding(7, 6, 1.0, 0.4, i) for i in range(3)]
    np.testing.assert_array_equal(d3.stack(tied).to_dense().reshape(3, 6, 7), [expert.to_dense().T for expert in tied])


def test_d3_learns_a_text_and_stays_sparse():
    ids = d2.text_to_vector(TEXTS)
    targets = d2.next_bytes(ids)
    model = d3.SparseExpertLanguageModel(V=256, D=32, H=8)
    start = model.parameters
    curve = model.train(ids, targets, epochs=80, batch_size=2)
    counts = np.bincount(targets[targets >= 0])
    share = counts[counts > 0] / counts.sum()
    unigram = -(share * np.log(share)).sum()
    assert curve[-1] < 0.6 * unigram < unigram < curve[0]  # better than anything that does not look at the text
    for name in ("embedding", "experts"):
        before, after = getattr(start, name), getattr(model.parameters, name)
        assert after.nnz == round(0.25 * after.shape[0] * after.shape[1])
        np.testing.assert_array_equal(before.indices, after.indices)
        np.testing.assert_array_equal(before.indptr, after.indptr)
        assert np.abs(before.data - after.data).max() > 0.1
        assert after.nbytes < 0.5 * after.shape[0] * after.shape[1] * 8
    assert model(ids).shape == (*ids.shape, 256)


def test_dense_layers_take_sparse_weights():
    weight, bias, x = rng().standard_normal((4, 3)), rng(1).standard_normal(3), rng(2).standard_normal((5, 4))
    y, backward = Dense(weight, bias).forward(x)
    dx, gradient = backward(np.ones_like(y))
    sparse_y, sparse_backward = Dense(CSR.from_dense(weight), bias).forward(x)
    sparse_dx, sparse_gradient = sparse_backward(np.ones_like(y))
    np.testing.assert_allclose(sparse_y, y)
    np.testing.assert_allclose(sparse_dx, dx)
    np.testing.assert_allclose(sparse_gradient.weight.to_dense(), gradient.weight)
    assert isinstance(ExpertNetwork(Dense(weight, bias), Dense(weight.T, x[0])).forward(x)[1](x)[1], ExpertNetwork)
