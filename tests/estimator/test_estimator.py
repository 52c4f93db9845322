"""The mixture's likelihood and the estimator: gradients, numbers by hand, real tables, and clear complaints."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

from tinymoe import ops
from tinymoe.check.trials.estimator import small, trials
from tinymoe.estimator.estimator import SparseMoeClassifier, SparseMoeModel, SparseMoeRegressor
from tinymoe.estimator.network import mixture_loss, network
from tinymoe.ops import cross_entropies, half_squared_errors, mixture_likelihood

RNG = np.random.default_rng(3)


def test_responsibilities_by_hand():
    """p = [¾, ¼] and exp(−loss) = [1/6, ½]: both experts are equally responsible, h = [½, ½], and L = −ln ¼."""
    scores, losses = np.log([[3.0, 1.0]]), np.log([[6.0, 2.0]])
    loss, backward = mixture_likelihood(scores, losses)
    assert loss == pytest.approx(np.log(4))
    dscores, dlosses = backward(1.0)
    np.testing.assert_allclose(dscores, [[0.25, -0.25]], rtol=1e-14)  # p − h: away from the first, to the second
    np.testing.assert_allclose(dlosses, [[0.5, 0.5]], rtol=1e-14)


def test_an_expert_learns_as_far_as_it_is_responsible():
    """∂L/∂o_i = −h_i (d − o_i), by the formula of Jacobs et al. 1991 written out."""
    scores, o, d = RNG.standard_normal((1, 3)), RNG.standard_normal((3, 2)), RNG.standard_normal((3, 2))
    losses, losses_back = half_squared_errors(o, d)
    _, backward = mixture_likelihood(scores, losses[None])
    joint = np.exp(scores[0]) * np.exp(-((d - o) ** 2).sum(1) / 2)
    h = joint / joint.sum()
    do, _ = losses_back(backward(1.0)[1][0])
    np.testing.assert_allclose(do, -h[:, None] * (d - o), rtol=1e-13)


def test_one_choice_teaches_the_gate_nothing():
    _, backward = mixture_likelihood(RNG.standard_normal((4, 1)), RNG.standard_normal((4, 1)))
    assert not backward(1.0)[0].any()


def test_a_target_that_is_no_class_is_an_error():
    with pytest.raises(IndexError, match="span -1 to 2; allowed are 0 to 1"):
        cross_entropies(np.zeros((2, 2)), np.array([-1, 2]))


@pytest.mark.parametrize("trial", list(trials(np.random.default_rng(1))), ids=str)
def test_gradient_of_every_parameter(trial):
    for method, tolerance in (("central", 1e-7), ("complex", 1e-12)):
        report = trial.report(method, seed=0)
        assert report.ok, report
        assert report.error < tolerance


@pytest.mark.parametrize("classes", [True, False])
def test_the_sparse_loss_equals_a_loop_over_rows(classes):
    p, x, targets = small(RNG, classes)
    total = 0.0
    for row, target in zip(x, targets, strict=True):
        z = np.append(row, 1) @ p.gate
        chosen = np.argsort(-z)[:2]
        likelihood = 0.0
        for i in chosen:
            o = np.append(np.maximum(np.append(row, 1) @ p.up[i], 0), 1) @ p.down[i]
            alone = np.exp(o)[target] / np.exp(o).sum() if classes else np.exp(-((target - o) ** 2).sum() / 2)
            likelihood += np.exp(z[i]) / np.exp(z[chosen]).sum() * alone
        total -= np.log(likelihood) / len(x)
    assert mixture_loss(p, x, targets, 2, 0.0)[0] == pytest.approx(total, rel=1e-12)


def test_what_is_not_chosen_gets_exactly_nothing():
    """The gate's columns and the networks of experts that no row went to, when nothing balances."""
    p, x, targets = small(RNG, True, n=2)
    (_, _, choice), _ = network(x, p, 2)
    idle = sorted(set(range(5)) - set(choice.indices.ravel().tolist()))
    assert idle
    gradient = mixture_loss(p, x, targets, 2, 0.0)[1](1.0)
    assert not gradient.gate[:, idle].any()
    assert not gradient.up[idle].any()
    assert not gradient.down[idle].any()
    busy = choice.indices[0]
    assert gradient.gate[:, busy].any()
    assert all(gradient.up[i].any() for i in busy)


def waves(n=240):
    """Two functions with a border between them: what a gate is for."""
    x = np.random.default_rng(0).uniform(-3, 3, (n, 2))
    return x, np.where(x[:, 0] > 0, np.sin(2 * x[:, 1]), 3 + x[:, 1])


def blobs(n=90):
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 3
    return rng.standard_normal((n, 2)) + 4 * np.array([[0, 0], [1, 0], [0, 1]])[labels], labels


def test_the_calls_of_the_document():
    data, labels = waves()
    model = SparseMoeModel()
    assert model.train(data, labels, epochs=100, learning_rate=0.01) is model
    predictions = model.predict(data)
    assert predictions.shape == labels.shape
    assert 1 - np.mean((predictions - labels) ** 2) / labels.var() == pytest.approx(model.score(data, labels))
    assert model.score(data, labels) > 0.8  # and 0.92 with a weight_decay of 1: there is no noise here
    assert len(model.loss_curve_) == 100
    assert model.loss_curve_[-1] < model.loss_curve_[0] / 2


@pytest.mark.parametrize("kind", [int, str, bool, object])
def test_labels_that_are_not_floats_are_classes(kind):
    data, numbers = blobs()
    labels = numbers > 0 if kind is bool else np.array([f"kind {i}" for i in numbers]) if kind is str else numbers
    labels = labels.astype(object) if kind is object else labels
    model = SparseMoeModel().train(data, labels, epochs=20)
    assert model.classes_.tolist() == sorted(set(labels.tolist()))
    assert model.predict(data).dtype == model.classes_.dtype
    assert model.score(data, labels) > 0.9
    p = model.predict_proba(data)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-12)
    assert (model.classes_[p.argmax(1)] == model.predict(data)).all()


def test_the_task_can_be_set():
    data, numbers = blobs()
    regression = SparseMoeModel(task="regression", epochs=5).fit(data, numbers)
    assert regression.predict(data).dtype == float
    assert not hasattr(regression, "classes_")
    assert not hasattr(regression, "predict_proba")
    assert SparseMoeModel(task="classification", epochs=5).fit(data, 1.0 * numbers).classes_.tolist() == [0, 1, 2]


def test_the_loss_is_that_of_the_predicted_probabilities():
    """For classes −ln Σ_j w_j exp(−loss_j) is −ln of the mixture's probability: training and prediction agree."""
    data, labels = blobs()
    model = SparseMoeModel(epochs=3).fit(data, labels)
    x = (data - data.mean(0)) / data.std(0)
    loss, _ = mixture_loss(model.network_, x, labels, model.k, 0.0)
    assert loss == pytest.approx(-np.log(model.predict_proba(data)[np.arange(len(x)), labels]).mean(), rel=1e-12)


def test_several_targets_and_units_do_not_matter():
    data, y = waves()
    both = SparseMoeModel(epochs=40).fit(data, np.stack([y, -1000 * y + 7], 1))
    predicted = both.predict(data)
    assert predicted.shape == (len(y), 2)
    assert both.score(data, np.stack([y, -1000 * y + 7], 1)) > 0.8
    moved = SparseMoeModel(epochs=5).fit(1e3 * data + 50, 1e-3 * y)
    plain = SparseMoeModel(epochs=5).fit(data, y)
    np.testing.assert_allclose(moved.predict(1e3 * data + 50), 1e-3 * plain.predict(data), rtol=1e-6, atol=1e-9)


def test_same_seed_same_bits_and_another_seed_another_model():
    data, y = waves(60)
    one, two, other = (SparseMoeModel(epochs=4, random_state=s).fit(data, y).predict(data) for s in (5, 5, 6))
    assert (one == two).all()
    assert (one != other).any()


def test_experts_divide_the_task_and_none_is_idle():
    data, y = waves()
    model = SparseMoeModel().fit(data, y)
    indices, weights = model.route(data)
    assert np.bincount(indices.ravel(), minlength=4).min() > len(y) / 10
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-12)
    per_side = [np.bincount(indices[side, 0], minlength=4) for side in (data[:, 0] > 0, data[:, 0] <= 0)]
    assert np.minimum(*per_side).sum() < len(y) / 4  # first choices on both sides of the border


def test_training_again_starts_anew_and_params_wait_for_it():
    data, y = waves(60)
    model = SparseMoeModel(epochs=3).fit(data, y)
    before = model.predict(data)
    assert (model.set_params(k=1).predict(data) == before).all()
    assert (model.set_params(k=2).fit(data, y).predict(data) == before).all()
    copy = SparseMoeModel(**model.get_params()).fit(data, y)
    assert (copy.predict(data) == before).all()
    assert model.fit(data, y > 0).classes_.tolist() == [False, True]


def test_edges():
    data, y = waves(40)
    constant = np.column_stack([data, np.full(40, 0.1)])
    model = SparseMoeModel(epochs=2).fit(constant, y)
    assert np.isfinite(model.predict(constant)).all()
    assert model.predict(constant[:0]).shape == (0,)
    assert SparseMoeModel(epochs=2).fit(data[:1], y[:1]).predict(data[:1]) == pytest.approx(y[0])
    assert SparseMoeModel(epochs=2, experts=1, k=1).fit(data, np.full(40, 3.0)).score(data, np.full(40, 3.0)) <= 1
    assert SparseMoeModel(epochs=0).fit(data, y).loss_curve_ == []


DATA, LABELS = blobs()
MISTAKES = {
    "X contains NaN": lambda: SparseMoeModel().fit(np.where(DATA > 3, np.nan, DATA), LABELS),
    "y contains NaN": lambda: SparseMoeModel().fit(DATA, np.full(len(DATA), np.inf)),
    "y has shape \\(89,\\) and X has 90 rows": lambda: SparseMoeModel().fit(DATA, LABELS[1:]),
    "X has 1 features, but SparseMoeModel is expecting 2": lambda: (
        SparseMoeModel(epochs=0).fit(DATA, LABELS).predict(DATA[:, :1])
    ),
    "Reshape your data": lambda: SparseMoeModel().fit(DATA[:, 0], LABELS),
    "0 feature": lambda: SparseMoeModel().fit(DATA[:, :0], LABELS),
    "not trained yet": lambda: SparseMoeModel().predict(DATA),
    "one class, 7": lambda: SparseMoeModel().fit(DATA, np.full(len(DATA), 7)),
    "y is None": lambda: SparseMoeModel().fit(DATA, None),
    "several kinds": lambda: SparseMoeModel().fit(DATA[:3], np.array(["a", None, 1], object)),
    "one label for each row": lambda: SparseMoeModel().fit(DATA, np.stack([LABELS, LABELS], 1)),
    "Unknown label type": lambda: SparseMoeClassifier().fit(DATA, LABELS + 0.5),
    "k is 5": lambda: SparseMoeModel(k=5).fit(DATA, LABELS),
    "hidden is 2.5": lambda: SparseMoeModel().set_params(hidden=2.5).fit(DATA, LABELS),
    "learning_rate is -1": lambda: SparseMoeModel(learning_rate=-1).fit(DATA, LABELS),
    "balance is 'x'": lambda: SparseMoeModel().set_params(balance="x").fit(DATA, LABELS),
    "task is 'ranking'": lambda: SparseMoeModel(task="ranking").fit(DATA, LABELS),
    "no parameter 'width'": lambda: SparseMoeModel().set_params(width=3),
    "choose a smaller one": lambda: SparseMoeModel(learning_rate=1e3).fit(DATA, 1.0 * LABELS),
    "could not convert string": lambda: SparseMoeRegressor().fit(DATA, np.array(["a", "b", "c"])[LABELS]),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_one_clear_sentence(message):
    with pytest.raises(ValueError, match=message):
        MISTAKES[message]()


def test_a_column_of_classes_is_taken_with_a_warning():
    with pytest.warns(UserWarning, match="column-vector"):
        model = SparseMoeModel(epochs=1).fit(DATA, LABELS[:, None])
    assert model.predict(DATA).shape == LABELS.shape


def test_scikit_learn_is_not_imported():
    code = "import sys, tinymoe.estimator.estimator; assert not {'sklearn', 'scipy', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


@pytest.mark.parametrize("kind", [SparseMoeClassifier, SparseMoeRegressor, SparseMoeModel])
def test_scikit_learn_accepts_it(kind):
    """All its checks for estimators. It skips two itself: arrays of other libraries (SciPy's switch is off) and pandas
    (where that is not installed)."""
    checks = pytest.importorskip("sklearn.utils.estimator_checks", reason="scikit-learn is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, about an estimator that does not inherit from its base class
        results = checks.check_estimator(kind(epochs=20), on_skip=None, on_fail=None)
    assert len(results) > 30
    failed = [(r["check_name"], r["exception"]) for r in results if r["status"] not in ("passed", "skipped")]
    assert not failed


def active_width(features, outputs, model):
    """The hidden layer of a dense network with as many parameters as a row meets in the mixture."""
    expert = (features + 1) * model.hidden + (model.hidden + 1) * outputs
    active = (features + 1) * model.experts + model.k * expert
    return round((active - outputs) / (features + 1 + outputs))


@pytest.mark.parametrize("table", ["wine", "diabetes", "digits"])
def test_real_tables_against_a_dense_network_of_equal_active_size(table):
    """Mean of 3 folds, at most 0.01 less, for they vary by more; scikit-learn's network gets the same standardised input and
    targets. Full numbers, 5 folds and several seeds, need a minute and are not for a test."""
    datasets, model_selection, neural_network = (
        pytest.importorskip(f"sklearn.{part}", reason="scikit-learn is not installed")
        for part in ("datasets", "model_selection", "neural_network")
    )
    X, y = getattr(datasets, f"load_{table}")(return_X_y=True)
    X, y = (X[::2], y[::2]) if table == "digits" else (X, y)  # for speed
    regression = y.dtype.kind == "f"
    folds = (model_selection.KFold if regression else model_selection.StratifiedKFold)(3, shuffle=True, random_state=0)
    model = SparseMoeModel(epochs=25 if table == "digits" else 100)
    dense = (neural_network.MLPRegressor if regression else neural_network.MLPClassifier)(
        hidden_layer_sizes=(active_width(X.shape[1], 1 if regression else len(set(y)), model),), random_state=0
    )
    ours, theirs = [], []
    for train, test in folds.split(X, y):
        mean, std = X[train].mean(0), X[train].std(0) + 1e-9
        shift, scale = (y[train].mean(), y[train].std()) if regression else (0, 1)
        labels = (y - shift) / scale if regression else y
        ours.append(model.fit(X[train], y[train]).score(X[test], y[test]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it stops before it has converged
            dense.fit((X[train] - mean) / std, labels[train])
        theirs.append(dense.score((X[test] - mean) / std, labels[test]))
    assert np.mean(ours) > np.mean(theirs) - 0.01, (ours, theirs)


def test_the_documents_rule_needs_the_label_that_prediction_does_not_have():
    """One row, two experts that answer 0 and 1. Which one is best depends on the label; and a softmax of the losses, which
    the document takes for choosing the smallest, chooses the largest."""
    for label, best in ((0.1, 0), (0.9, 1)):
        losses, _ = half_squared_errors(np.array([[0.0], [1.0]]), np.full((2, 1), label))
        _, likelihood_back = mixture_likelihood(np.zeros((1, 2)), losses[None])
        assert likelihood_back(1.0)[1].argmax() == best
        assert ops.softmax(losses[None])[0].argmax() == 1 - best
