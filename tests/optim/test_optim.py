"""Optimisers and schedule against their formulas, written out in float64."""

import numpy as np
import pytest

from tinymoe import optim

RNG = np.random.default_rng(0)


def test_adamw_by_the_formula(monkeypatch):
    monkeypatch.setattr("tinymoe.optim.updates.CHUNK", 4)  # several chunks
    θ, m, v = RNG.standard_normal((3, 5)), np.zeros((3, 5)), np.zeros((3, 5))
    mine, slots = θ.copy(), optim.new_slots("adamw", θ)
    for t in range(1, 6):
        g = RNG.standard_normal((3, 5))
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        θ = θ - 0.01 * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8) + 0.3 * θ)
        optim.adamw(mine, g, slots, lr=0.01, step=t, beta1=0.9, beta2=0.95, weight_decay=0.3)
    np.testing.assert_allclose(mine, θ, rtol=1e-12)


def test_sgd_by_the_formula():
    θ, v = RNG.standard_normal(7), np.zeros(7)
    mine, slots = θ.copy(), optim.new_slots("sgd", θ)
    for t in range(1, 4):
        g = RNG.standard_normal(7)
        v = 0.8 * v + g
        θ = θ - 0.1 * (v + 0.2 * θ)
        optim.sgd(mine, g, slots, lr=0.1, beta1=0.8, weight_decay=0.2, step=t)
    np.testing.assert_allclose(mine, θ, rtol=1e-13)


def test_an_optimiser_leaves_the_gradient_alone_and_float32_stays():
    for name, update in optim.OPTIMIZERS.items():
        θ, g = np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)
        g.flags.writeable = False
        slots = optim.new_slots(name, θ)
        update(θ, g, slots, lr=0.1, step=1)
        assert {a.dtype for a in (θ, *slots.values())} == {np.dtype(np.float32)}


def test_without_gradient_plain_adam_still_moves_a_little_and_sgd_without_momentum_does_not():
    """What an idle expert goes through: its mean decays but is not zero."""
    θ, slots = np.zeros(1), optim.new_slots("adamw", np.zeros(1))
    optim.adamw(θ, np.ones(1), slots, lr=0.1, step=1)
    before = θ.copy()
    optim.adamw(θ, np.zeros(1), slots, lr=0.1, step=2)
    assert θ < before
    still = np.ones(1)
    optim.sgd(still, np.zeros(1), optim.new_slots("sgd", still), lr=0.1, beta1=0.0, step=1)
    assert still == 1


def test_the_schedule_by_hand():
    rates = [optim.learning_rate(step, 1.0, 10, 110, 0.2) for step in (1, 5, 10, 60, 110, 500)]
    np.testing.assert_allclose(rates, [0.1, 0.5, 1.0, 0.6, 0.2, 0.2])
    assert optim.learning_rate(1, 1.0, 0, 1, 0.1) == pytest.approx(0.1)


def test_clipping():
    norm = optim.global_norm([np.array([3.0]), np.array([[0.0, 4.0]])])
    assert norm == 5
    assert optim.clip_factor(norm, 1.0) == pytest.approx(0.2)
    assert optim.clip_factor(0.5, 1.0) == 1
    assert optim.clip_factor(norm, 0) == 1
