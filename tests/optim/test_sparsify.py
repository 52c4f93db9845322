"""Recipes for sparse weights: what each promises, in a short training run, and a sparse model saved and run as CSR."""

from typing import Any

import numpy as np
import pytest

from tinymoe import optim
from tinymoe.errors import UserError
from tinymoe.models.language import forward
from tinymoe.optim import sparsify
from tinymoe.optim.sparsify import RECIPES, Sparsity
from tinymoe.runs.checkpoint import load_arrays
from tinymoe.runs.state import load_model, load_state
from tinymoe.sparse import sparse_plus_low_rank
from tinymoe.train import __main__ as train
from tinymoe.tree import named, with_role

SMALL = (
    "--layers 2 --width 16 --heads 2 --kv-heads 1 --experts 4 --expert-width 8 --context 16 --batch-size 5 --warmup 5 "
    "--eval-every 20 --checkpoint-every 20 --sample-tokens 5 --workers 1 --corpus toy --steps 40 --decay-steps 40 "
    "--sparsity-every 5 --sparsity-level 0.8 --l1 1e-3 --rank 2"
).split()


def run(out, *more):
    assert train.main([*SMALL, "--out", str(out), *more]) == 0
    return load_state(out)[0]


def weights(state):
    leaves = named(state.params)
    return {name: leaves[name] for name in with_role(state.params, "sparsifiable")}


def zeros(w):
    return np.count_nonzero(w == 0) / w.size


def test_the_chosen_are_matrices_of_attention_and_experts(tmp_path):
    names = weights(run(tmp_path / "a"))
    assert "blocks.0.attention.key" in names
    assert "blocks.1.mixture.experts.gate" in names
    assert not any("router" in n or "norm" in n or "embedding" in n or "head" in n or "shift" in n for n in names)


@pytest.mark.parametrize("recipe", ["prune", "init", "iht", "rigl"])
def test_a_recipe_with_a_level_reaches_it_in_every_matrix(recipe, tmp_path):
    for name, w in weights(run(tmp_path / "a", "--sparsity", recipe)).items():
        assert zeros(w) == pytest.approx(0.8, abs=1 / w.size + 1e-9), name


def test_global_pruning_reaches_the_level_over_all_and_n_m_in_every_group(tmp_path):
    found = weights(run(tmp_path / "a", "--sparsity", "prune", "--sparsity-scope", "global"))
    assert zeros(np.concatenate([w.ravel() for w in found.values()])) == pytest.approx(0.8, abs=1e-3)
    assert len({round(zeros(w), 2) for w in found.values()}) > 1
    for name, w in weights(run(tmp_path / "b", "--sparsity", "prune", "--sparsity-scope", "2:4")).items():
        groups = np.moveaxis(w, -2, -1).reshape(-1, 4)
        assert (np.count_nonzero(groups, axis=1) == 2).all(), name


def test_the_subgradient_makes_weights_small_and_only_the_proximal_step_makes_zeros(tmp_path):
    plain, sub, prox = (
        np.concatenate([w.ravel() for w in weights(run(tmp_path / r, "--sparsity", r)).values()])
        for r in ("none", "l1", "l1-proximal")
    )
    assert np.abs(sub).mean() < np.abs(plain).mean()
    assert zeros(plain) == zeros(sub) == 0
    assert zeros(prox) > 0.2


def test_low_rank_leaves_a_sparse_part_and_a_part_of_that_rank(tmp_path):
    w = weights(run(tmp_path / "a", "--sparsity", "low-rank"))["blocks.0.attention.query"]
    split = sparse_plus_low_rank(w, 2, 0.8, 50)
    assert split.errors[-1] < 1e-3
    plain = weights(run(tmp_path / "b"))["blocks.0.attention.query"]
    assert sparse_plus_low_rank(plain, 2, 0.8, 50).errors[-1] > 0.05


def test_a_fixed_mask_never_moves_and_rigl_moves_it(tmp_path):
    for recipe, moves in (("init", False), ("rigl", True)):
        before = run(tmp_path / f"{recipe}1", "--sparsity", recipe, "--steps", "4")
        after = run(tmp_path / f"{recipe}2", "--sparsity", recipe)
        name = "blocks.0.mixture.experts.up"
        assert np.any(before.slots[name]["mask"] != after.slots[name]["mask"]) == moves


def test_sparse_initialisation_keeps_the_output_variance():
    sparsity = Sparsity(sparsity="init", level=0.9)
    w = np.random.default_rng(0).standard_normal((400, 300))
    cut = w.copy()
    sparsify.first_masks({"w": cut}, sparsity, np.random.default_rng(1))
    x = np.random.default_rng(2).standard_normal((500, 400))
    assert np.var(x @ cut) == pytest.approx(np.var(x @ w), rel=0.05)


def test_drop_and_grow_by_hand():
    weight = np.array([3.0, 0.1, 0.0, 0.0, -2.0, 0.0])
    slots = {"mask": weight != 0, "mean": np.ones(6)}
    sparsify.drop_and_grow(weight, np.array([9.0, 9.0, 1.0, -5.0, 9.0, 2.0]), slots, share=0.4)
    assert slots["mask"].tolist() == [True, False, False, True, True, False]  # 0.1 dropped, |−5| grown
    assert weight.tolist() == [3, 0, 0, 0, -2, 0]
    assert slots["mean"].tolist() == [1, 0, 0, 0, 1, 0]


def test_the_pruning_level_rises_along_a_cubic():
    levels = [Sparsity(level=0.8).level_at(step, 100) for step in (0, 20, 45, 70, 100)]
    np.testing.assert_allclose(levels, [0, 0, 0.8 * (1 - 0.5**3), 0.8, 0.8])


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r != "none"])
def test_stopped_and_resumed_equals_uninterrupted(recipe, tmp_path):
    whole = run(tmp_path / "whole", "--sparsity", recipe, "--workers", "2")
    run(tmp_path / "parts", "--sparsity", recipe, "--workers", "2", "--steps", "23")
    assert train.main(["--resume", str(tmp_path / "parts"), "--steps", "40"]) == 0
    parts = load_state(tmp_path / "parts")[0]
    for name, p in named(whole.params).items():
        np.testing.assert_array_equal(p, named(parts.params)[name], err_msg=name)


def test_a_pruned_model_is_stored_and_run_as_csr(tmp_path):
    state = run(tmp_path / "a", "--sparsity", "prune", "--sparsity-level", "0.9")
    arrays, _ = load_arrays(tmp_path / "a/model.safetensors")
    assert "blocks.0.mixture.experts.up.indptr" in arrays
    dense, config = load_model(tmp_path / "a/model.safetensors")
    sparse, _ = load_model(tmp_path / "a/model.safetensors", keep_sparse=True)
    for name, p in named(state.params).items():
        np.testing.assert_array_equal(named(dense)[name], p, err_msg=name)
    stored: dict[str, Any] = named(sparse)
    assert stored["blocks.0.mixture.experts.up"].density == pytest.approx(0.1, abs=0.01)
    ids = np.random.default_rng(0).integers(0, 256, (2, 7))
    (expected, _, _), _ = forward(dense, config, ids)
    (found, _, _), backward = forward(sparse, config, ids)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    gradient = (
        backward(np.ones_like(found), [0.0, 0.0]).blocks[0].mixture.experts.up
    )  # sparse weights can be trained too
    assert gradient.shape == sparse.blocks[0].mixture.experts.up.shape
    assert np.isfinite(gradient.data).all()


def test_lazy_updates_leave_unused_rows_alone_to_the_bit():
    rng = np.random.default_rng(0)
    g = rng.standard_normal((5, 3))
    g[[1, 4]] = 0
    for name, update in optim.OPTIMIZERS.items():
        dense, lazy = np.ones((5, 3)), np.ones((5, 3))
        options = {"lr": 0.1, "step": 3, "beta1": 0.0, "weight_decay": 0.0}
        slots, lazy_slots = ({k: v + 1 for k, v in optim.new_slots(name, dense).items()} for _ in range(2))
        update(dense, g, slots, **options)
        optim.lazy(update)(lazy, g, lazy_slots, **options)
        np.testing.assert_array_equal(lazy[[0, 2, 3]], dense[[0, 2, 3]])
        assert (lazy[[1, 4]] == 1).all()
        assert all((s[[1, 4]] == 1).all() for s in lazy_slots.values())


def test_lazy_sgd_without_memory_is_sgd_and_lazy_adam_is_not_adam():
    g = np.array([[1.0], [0.0]])
    for name, same in (("sgd", True), ("adamw", False)):
        results = []
        for update in (optim.OPTIMIZERS[name], optim.lazy(optim.OPTIMIZERS[name])):
            p = np.ones((2, 1))
            slots = (
                {k: v + 1 for k, v in optim.new_slots(name, p).items()} if name == "adamw" else optim.new_slots(name, p)
            )
            update(p, g, slots, lr=0.1, step=2, beta1=0.0 if same else 0.9)
            results.append(p)
        assert np.array_equal(results[0], results[1]) == same


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sparsity", "magic"], "choose one of none, prune"),
        (["--sparsity-level", "1"], "at least 0 and below 1"),
        (["--sparsity-level", "-0.1"], "at least 0"),
        (["--sparsity-scope", "4:2"], "1 ≤ N ≤ M"),
        (["--sparsity-scope", "some"], "choose layer, global"),
        (["--rank", "0"], "--rank is 0"),
    ],
)
def test_bad_settings_are_refused(flags, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train.main([*SMALL, "--out", str(tmp_path / "a"), *flags])
