"""Reading a text in chunks: with the state carried over it is one text, without it is not."""

from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import shaken
from tinymoe import ops
from tinymoe.models.config import LanguageConfig
from tinymoe.models.initialise import initialize
from tinymoe.models.language import forward, read_on
from tinymoe.models.long_text import chunk_losses, overlapping_loss, streams

TOKENS = np.random.default_rng(0).integers(0, 11, 100).astype(np.uint8)


def model(architecture):
    small = LanguageConfig(vocabulary=11, context=8, layers=2, width=12, heads=2, kv_heads=1, expert_width=5)
    config = replace(small, experts=4, architecture=architecture)
    rng = np.random.default_rng(1)
    return shaken(initialize(config, rng, np.float64), rng, 0.3), config


@pytest.mark.parametrize("architecture", ["rnn", "gru", "lstm"])
def test_chunks_that_hand_on_their_state_are_the_whole_text(architecture):
    params, config = model(architecture)
    ids = TOKENS[:24].reshape(1, 24).astype(int)
    (whole, _, _), _ = forward(params, config, ids)
    states, parts = None, []
    for chunk in np.split(ids, [5, 6, 17], axis=1):
        (logits, _, _, states), _ = read_on(params, config, chunk, states)
        parts.append(logits)
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-12)
    found = chunk_losses(params, config, TOKENS, 8, count=1)
    (logits, _, _), _ = forward(params, config, TOKENS[None, :96].astype(int))
    assert found["carried"] == pytest.approx(float(ops.cross_entropy(logits, TOKENS[1:97].astype(int))[0]), rel=1e-12)
    assert abs(found["apart"] - found["carried"]) > 1e-4


def test_streams_read_on_where_they_stopped():
    ids, targets = streams(np.arange(30), 4, 2)
    assert ids.shape == (3, 2, 4)
    assert ids[:, 0].reshape(-1).tolist() == list(range(12))
    assert ids[:, 1].reshape(-1).tolist() == list(range(12, 24))
    assert (targets == ids + 1).all()
    with pytest.raises(ValueError, match="need 9"):
        streams(np.arange(8), 8, 2)


def test_overlapping_windows_predict_each_target_once_with_half_a_window_before_it():
    params, config = model("transformer")
    expected = []
    for start in range(0, 100 - 8, 4):
        (logits, _, _), _ = forward(params, config, TOKENS[None, start : start + 8].astype(int))
        z = logits[4:]
        right = z[np.arange(4), TOKENS[start + 5 : start + 9]]
        expected += list(np.log(np.exp(z).sum(1)) - right)
    assert overlapping_loss(params, config, TOKENS, 8, count=5) == pytest.approx(np.mean(expected), rel=1e-12)
    assert set(chunk_losses(params, config, TOKENS, 8)) == {"apart"}
    with pytest.raises(ValueError, match="need 9"):
        overlapping_loss(params, config, TOKENS[:8], 8)
