"""The worked examples of the five documents, with what they print wrongly."""

import numpy as np
import pytest

from tinymoe import ops


def test_embedding_is_the_product_with_a_one_hot_column():
    """扩展视觉语言模型 §4.1: W·onehot("hello") is the column [2, 4]; the row [2, 3], which is printed, is Wᵀ·onehot."""
    w, hello = np.array([[2.0, 3.0], [4.0, 5.0]]), np.array([1.0, 0.0])
    assert (w @ hello).tolist() == [2, 4]
    assert (w.T @ hello).tolist() == [2, 3]
    y, backward = ops.embedding(np.array([0, 1, 0]), w.T)  # the rows of the table are the columns of the document's W
    onehot = np.eye(2)[[0, 1, 0]]
    np.testing.assert_array_equal(y, onehot @ w.T)
    dy = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    np.testing.assert_array_equal(backward(dy)[0], onehot.T @ dy)


def test_relu():
    """扩展视觉语言模型 §4.2: f(−2) = 0."""
    assert ops.relu(np.array([-2.0]))[0].tolist() == [0]


def test_the_output_layer():
    """扩展视觉语言模型 §4.3: [1·5 + 2·6 + 7, 3·5 + 4·6 + 8] is [24, 47], not the printed [35, 43]."""
    w, x, b = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[5.0, 6.0]]), np.array([7.0, 8.0])
    y, _ = ops.linear(x, w.T, b)
    assert y.tolist() == [[24, 47]]
    assert y.tolist() != [[35, 43]]


@pytest.mark.parametrize(
    ("weights", "outputs", "answer"),
    [
        ([0.5, 0.5], [0.6, 0.8], 0.7),  # 稀疏专家模型 §4.3
        ([0.6, 0.4], [10.0, 20.0], 14.0),  # 扩展视觉语言模型 §4.4, printed as 16
    ],
)
def test_a_weighted_sum_of_experts(weights, outputs, answer):
    assignment = ops.group_by_expert(np.array([[0, 1]]), 2)
    y, _ = ops.combine(np.array(outputs)[:, None], np.array([weights]), assignment)
    assert y.item() == pytest.approx(answer)


def test_only_chosen_experts_are_updated():
    """Sparse gate, §4: A = TopK(W, K); Δw_i is 0 for i outside A, and −η ∂L/∂w_i inside (the document omits −η)."""
    rng = np.random.default_rng(0)
    x, router = rng.standard_normal((1, 3)), rng.standard_normal((3, 4))
    up, down = rng.standard_normal((4, 3, 2)), rng.standard_normal((4, 2, 3))
    (y, _, routing), backward = ops.moe(x, router, up, down, k=2, activation=ops.gelu)
    _, _, dup, _ = backward(y, 0.0)  # of L = ½ y²
    chosen = set(routing.indices[0].tolist())
    assert {e for e in range(4) if dup[e].any()} == chosen
    (lower, _, _), _ = ops.moe(x, router, up - 1e-3 * dup, down, k=2, activation=ops.gelu)
    (higher, _, _), _ = ops.moe(x, router, up + 1e-3 * dup, down, k=2, activation=ops.gelu)
    assert (lower**2).sum() < (y**2).sum() < (higher**2).sum()
