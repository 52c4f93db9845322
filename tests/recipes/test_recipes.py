"""Recipes: distillation proved, upcycling equal before training, pruning, choosing and halving by hand, the commands."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.conftest import shaken
from tinymoe import generate
from tinymoe.data import corpora
from tinymoe.data.windows import TrainingWindows
from tinymoe.errors import UserError
from tinymoe.gradcheck import check_gradients
from tinymoe.models.blocks import mixture
from tinymoe.models.config import LanguageConfig
from tinymoe.models.initialise import initialize
from tinymoe.models.language import forward
from tinymoe.models.routers import Situation
from tinymoe.ops import cross_entropy
from tinymoe.ops.distillation import distillation
from tinymoe.recipes import __main__ as command
from tinymoe.recipes import search
from tinymoe.recipes.distill import distill, taught
from tinymoe.recipes.fit import Model, advance, evaluate, fit, for_steps, new_model, start, token_losses
from tinymoe.recipes.independent import choose, connect, dense_shape, divide, train_apart
from tinymoe.recipes.prune import best, damage, prune_experts, usage
from tinymoe.recipes.upcycle import upcycle
from tinymoe.runs.settings import Settings, resolve
from tinymoe.runs.state import load_model, new_state, new_trainer
from tinymoe.tree import named, tree_map

RNG = np.random.default_rng(31)
PADDED = np.array([True, False, True, True, False])


def test_distillation_by_hand():
    """Teacher [.75, .25], student [.5, .5]: KL is .75 ln 1.5 + .25 ln .5; equal models have loss 0."""
    teacher, student = np.log([[0.75, 0.25]]), np.zeros((1, 2))
    loss, backward = distillation(student, teacher=teacher)
    assert loss == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5), rel=1e-14)
    np.testing.assert_allclose(backward(1.0)[0], [[-0.25, 0.25]], atol=1e-15)
    assert distillation(teacher + 3, teacher=teacher, temperature=5.0)[0] == pytest.approx(0, abs=1e-14)


def test_a_teacher_that_is_certain_is_the_text_itself():
    """With all its probability on one token, distillation at T = 1 is cross-entropy: loss and gradient."""
    logits, targets = RNG.standard_normal((6, 5)), RNG.integers(0, 5, 6)
    teacher = 1e4 * np.eye(5)[targets]
    (a, a_back), (b, b_back) = distillation(logits, teacher=teacher), cross_entropy(logits, targets)
    np.testing.assert_allclose(a, b, rtol=1e-14)
    np.testing.assert_allclose(a_back(1.0)[0], b_back(1.0)[0], atol=1e-15)


def test_the_square_of_the_temperature_keeps_the_size_of_the_gradient():
    """For large T it tends to (logits − teacher)/V, rows centred, whatever T is (Hinton et al. 2015, eq. 4)."""
    logits, teacher = (a - a.mean(1, keepdims=True) for a in RNG.standard_normal((2, 3, 7)))
    for temperature in (1e3, 1e4):
        (gradient,) = distillation(logits, teacher=teacher, temperature=temperature)[1](3.0)  # 3 rows
        np.testing.assert_allclose(gradient, (logits - teacher) / 7, rtol=0, atol=3 / temperature)


def test_padding_may_be_nan_and_float32_stays():
    logits = RNG.standard_normal((5, 3)).astype(np.float32)
    logits[~PADDED] = np.nan
    logits.flags.writeable = False
    teacher = RNG.standard_normal((5, 3))  # float64
    loss, backward = distillation(logits, teacher=teacher, mask=PADDED, temperature=2.0)
    (gradient,) = backward(np.float32(1))
    assert np.asarray(loss).dtype == gradient.dtype == np.float32
    assert np.isfinite(gradient).all() and not gradient[~PADDED].any()
    alone, _ = distillation(logits[PADDED], teacher=teacher[PADDED], temperature=2.0)
    assert loss == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize("temperature", [0, -1.0, np.inf, np.nan])
def test_a_temperature_is_positive_and_finite(temperature):
    with pytest.raises(ValueError, match="temperature"):
        distillation(np.zeros((2, 3)), teacher=np.zeros((2, 3)), temperature=temperature)
    with pytest.raises(ValueError, match="shape"):
        distillation(np.zeros((2, 3)), teacher=np.zeros((1, 3)))


# --- models ---------------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"context": 8, "layers": 2, "width": 12, "heads": 2, "kv_heads": 2, "expert_width": 6}
DENSE = LanguageConfig(vocabulary=17, **SMALL, dense_layers=(0, 1), top_k=2)  # a feed-forward of width 12
IDS = RNG.integers(0, 17, (5, 8))


def model(config, dtype=np.float64) -> Model:
    """With gains and the like away from their initial ones and zeros."""
    return Model(shaken(initialize(config, RNG, dtype), RNG, 0.2), config)


def logits(model: Model, ids=IDS):
    return forward(*model, ids)[0][0]


@pytest.mark.parametrize("kind", ["swiglu", "relu"])
@pytest.mark.parametrize(("experts", "top_k", "split"), [(5, 2, 1), (4, 4, 1), (6, 2, 2), (12, 6, 3), (8, 4, 2)])
def test_an_upcycled_model_computes_what_the_dense_one_does(experts, top_k, split, kind):
    dense = model(replace(DENSE, expert_kind=kind))
    sparse = upcycle(*dense, experts, top_k, np.random.default_rng(1), split=split)
    np.testing.assert_allclose(logits(sparse), logits(dense), rtol=1e-12, atol=1e-12)
    assert (sparse.config.experts, sparse.config.expert_width) == (experts, 12 // split)
    shape = {name: a.shape for name, a in named(initialize(sparse.config, RNG)).items()}
    assert {name: a.shape for name, a in named(sparse.params).items()} == shape  # so it can be saved and loaded


def test_a_layer_with_a_single_expert_is_dense_too():
    single = model(replace(DENSE, dense_layers=(), experts=1, top_k=1))
    sparse = upcycle(*single, 4, 2, np.random.default_rng(1), split=2)
    np.testing.assert_allclose(logits(sparse), logits(single), rtol=1e-12, atol=1e-12)


def test_shards_of_a_copy_are_chosen_together_and_different_tokens_choose_different_copies():
    sparse = upcycle(*model(DENSE), 8, 2, np.random.default_rng(1), split=2)
    (_, _, routed), _ = forward(*sparse, IDS)
    pairs = np.sort(routed[0].indices, 1)
    assert (pairs[:, 0] % 2 == 0).all() and (pairs[:, 1] == pairs[:, 0] + 1).all()
    assert len(np.unique(pairs[:, 0])) > 1


def test_noise_makes_copies_differ_by_that_share_of_their_size():
    dense = model(replace(DENSE, width=64, expert_width=100))
    up = upcycle(*dense, 3, 2, np.random.default_rng(1), noise=0.1).params.blocks[0].mixture.experts.up
    original = dense.params.blocks[0].mixture.experts.up
    off = up - original
    assert np.sqrt((off * off).mean() / (original * original).mean()) == pytest.approx(0.1, rel=0.02)
    assert not np.allclose(up[0], up[1])


def test_an_upcycled_float32_model_stays_float32():
    sparse = upcycle(*model(DENSE, np.float32), 4, 2, np.random.default_rng(1), noise=0.1, split=2)
    assert {a.dtype for a in named(sparse.params).values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("config", "experts", "top_k", "split", "word"),
    [
        (replace(DENSE, dense_layers=(1,)), 4, 2, 1, "not dense"),
        (DENSE, 4, 1, 1, "top_k"),
        (DENSE, 2, 3, 1, "top_k"),
        (DENSE, 5, 2, 2, "experts"),
        (DENSE, 10, 5, 5, "width"),
        (DENSE, 4, 2, 0, "split"),
    ],
)
def test_what_cannot_be_upcycled(config, experts, top_k, split, word):
    with pytest.raises(ValueError, match=word):
        upcycle(*model(config), experts, top_k, RNG, split=split)


SPARSE = LanguageConfig(vocabulary=17, **SMALL, experts=4, top_k=2)
ROUTERS = ["softmax", "noisy", "sigmoid"]


@pytest.mark.parametrize("router", ROUTERS)
def test_tokens_that_did_not_choose_the_pruned_expert_notice_nothing(router):
    whole = model(replace(SPARSE, router=router))
    pruned = prune_experts(*whole, [np.array([0, 1, 3])] * 2)
    x, at = RNG.standard_normal((60, 12)), Situation(1, np.zeros(60, int))
    (before, _, routed), _ = mixture(x, whole.params.blocks[0].mixture, whole.config, at)
    (after, _, _), _ = mixture(x, pruned.params.blocks[0].mixture, pruned.config, at)
    concerned = (routed.indices == 2).any(1)
    assert 5 < concerned.sum() < 55
    np.testing.assert_allclose(after[~concerned], before[~concerned], rtol=1e-12)
    assert (np.abs(after - before)[concerned].max(1) > 1e-6).all()


@pytest.mark.parametrize("router", ROUTERS)
def test_a_pruned_layer_is_the_layer_of_the_experts_that_are_left(router):
    """All but the last expert, taken with plain slices."""
    whole = model(replace(SPARSE, router=router))
    pruned = prune_experts(*whole, [np.arange(3)] * 2)
    sliced = {
        name: a[..., :3] if ".router." in name else a[:3] if ".experts." in name else a
        for name, a in named(whole.params).items()
    }
    for name, a in named(pruned.params).items():
        np.testing.assert_array_equal(a, sliced[name], err_msg=name)
    assert pruned.config == replace(whole.config, experts=3)
    assert np.isfinite(logits(pruned)).all()


def test_dense_layers_have_no_expert_to_lose():
    whole = model(replace(SPARSE, dense_layers=(0,)))
    pruned = prune_experts(*whole, best(usage(whole, TEXT), 2))
    np.testing.assert_array_equal(pruned.params.blocks[0].mixture.experts.up, whole.params.blocks[0].mixture.experts.up)
    assert pruned.params.blocks[1].mixture.experts.up.shape[0] == 2
    assert not usage(whole, TEXT)[0].any() and not damage(whole, TEXT)[0].any()


TEXT = RNG.integers(0, 17, 200).astype(np.uint8)


@pytest.mark.parametrize("router", ROUTERS)
def test_damage_is_what_pruning_that_expert_costs(router):
    whole = model(replace(SPARSE, router=router, layers=1))
    for expert, rise in enumerate(damage(whole, TEXT)[0]):
        pruned = prune_experts(*whole, [np.delete(np.arange(4), expert)])
        assert rise == pytest.approx(evaluate(pruned, TEXT) - evaluate(whole, TEXT), abs=1e-12)


def test_usage_counts_every_choice():
    assert usage(model(SPARSE), TEXT).sum(1).tolist() == [2 * 8 * 24] * 2  # K choices of T tokens in 24 windows


@pytest.mark.parametrize(
    ("config", "keep", "word"),
    [
        (SPARSE, [np.arange(1)] * 2, "top_k"),
        (SPARSE, [np.arange(3), np.arange(2)], "equally many"),
        (SPARSE, [np.array([0, 1, 1])] * 2, "different"),
        (SPARSE, [np.arange(3)], "layers"),
        (replace(SPARSE, router="hash", top_k=1), [np.arange(3)] * 2, "router"),
        (replace(SPARSE, router="sigmoid", groups=2, kept_groups=2), [np.arange(3)] * 2, "groups"),
    ],
)
def test_what_cannot_be_pruned(config, keep, word):
    with pytest.raises(ValueError, match=word):
        prune_experts(*model(config), keep)
    if word in ("router", "groups"):
        with pytest.raises(ValueError, match=word):
            damage(model(config), TEXT)


def test_best_takes_the_highest_in_order_and_of_equals_the_first():
    kept = best(np.array([[1, 5, 3, 5], [2, 2, 2, 2]]), 2)
    assert [k.tolist() for k in kept] == [[1, 3], [0, 1]]


# --- training -------------------------------------------------------------------------------------------------------

TINY = for_steps(Settings.of(**SMALL, experts=4, batch_size=4, warmup=2, workers=1), 6)


def byte_model(settings, seed=0):
    return new_model(settings.model, seed)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(named(a).values(), named(b).values(), strict=True))


def test_fit_leaves_its_input_alone_and_repeats_to_the_bit():
    begin, settings = byte_model(TINY), TINY.but(dropout=0.2)
    before = tree_map(np.copy, begin.params)
    once, again = (fit(Model(begin.params, settings.model), settings, TEXT) for _ in range(2))
    assert same(begin.params, before) and same(once.params, again.params) and not same(once.params, before)


def test_training_in_two_parts_is_training_in_one():
    state = start(byte_model(TINY), TINY)
    for until in (2, 6):
        advance(state, TINY.model, TINY, TEXT, until)
    assert same(state.params, fit(byte_model(TINY), TINY, TEXT).params)


def test_the_loop_takes_the_same_steps_as_the_trainer():
    settings = TINY.but(dropout=0.0)
    state = new_state(settings)
    windows = TrainingWindows(TEXT, settings.model.context, settings.run.seed)
    with new_trainer(state, settings) as trainer:
        for step in range(1, settings.run.steps + 1):
            trainer.step(windows.batch(step, settings.training.batch_size))
    ours, theirs = named(fit(byte_model(settings), settings, TEXT).params), named(state.params)
    for name, a in ours.items():
        np.testing.assert_allclose(a, theirs[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_evaluation_is_the_mean_cross_entropy():
    whole = byte_model(TINY)
    losses = token_losses(whole, TEXT)
    assert losses.shape == (24, 8)
    scores = logits(whole, TEXT[:192].reshape(24, 8).astype(int))
    assert evaluate(whole, TEXT) == pytest.approx(cross_entropy(scores, TEXT[1:193].astype(int))[0], rel=1e-6)


def test_distilling_with_weight_0_is_training_alone_and_bad_arguments_are_named():
    begin, teacher = byte_model(TINY), byte_model(TINY.but(experts=2, width=8), 5)
    alone = fit(begin, TINY, TEXT)
    assert same(distill(teacher, begin, TINY, TEXT, alpha=0.0).params, alone.params)
    assert not same(distill(teacher, begin, TINY, TEXT).params, alone.params)
    with pytest.raises(ValueError, match="alpha"):
        distill(teacher, begin, TINY, TEXT, alpha=1.5)
    with pytest.raises(ValueError, match="17 tokens"):
        distill(model(SPARSE), begin, TINY, TEXT)


def test_gradient_of_what_a_student_learns_from():
    teacher = byte_model(TINY, 5)
    batch = TrainingWindows(TEXT, 8, 0).batch(1, 2)
    scores = RNG.standard_normal((16, 256))
    report = check_gradients(lambda x: taught(teacher, 0.3, 2.0)(x, batch), scores)
    assert report.ok, report
    assert batch.targets is not None
    hard, _ = cross_entropy(scores, batch.targets.reshape(-1))
    soft, _ = distillation(scores, teacher=logits(teacher, batch.ids), temperature=2.0)
    assert taught(teacher, 0.3, 2.0)(scores, batch)[0] == pytest.approx(0.7 * hard + 0.3 * soft, rel=1e-12)


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_a_student_learns_more_from_a_good_teacher_than_from_the_text_alone(kind):
    """A text of which each byte has four possible successors, equally likely: the teacher knows all four, the text
    shows one of them at a time."""
    rng = np.random.default_rng(0)
    follows, text = rng.integers(0, 16, (16, 4)), [0]
    for choice in rng.integers(0, 4, 6000):
        text.append(follows[text[-1], choice])
    tokens = np.array(text, np.uint8)
    teacher = fit(byte_model(TEACHER), TEACHER, tokens[:5000])
    settings = for_steps(TEACHER, 60).but(dense_layers=(0,) if kind == "dense" else ())
    begin = byte_model(settings, 1)
    alone = evaluate(fit(begin, settings, tokens[:1000]), tokens[5000:])
    taught = evaluate(distill(teacher, begin, settings, tokens[:1000]), tokens[5000:])
    assert evaluate(teacher, tokens[5000:]) < taught < alone - 0.01


TEACHER = for_steps(
    Settings.of(
        tied=False,
        shift=True,
        context=16,
        layers=1,
        width=16,
        heads=1,
        kv_heads=1,
        experts=2,
        top_k=2,
        expert_width=16,
        lr=0.01,
    ),
    300,
)


# --- experts apart --------------------------------------------------------------------------------------------------


def test_experts_that_do_well_together_are_chosen_by_hand():
    """By their means, 2, 2.1, 2.25 and 3, experts 0 and 1 are best; but 2 knows what 0 does not, and 1 knows nothing new."""
    losses = np.array([[1.0, 1, 3, 3], [1, 1, 3.2, 3.2], [4, 4, 0.5, 0.5], [3, 3, 3, 3]])
    assert choose(losses, 1) == [0]
    assert choose(losses, 2) == [0, 2]
    assert sorted(choose(losses, 4)) == [0, 1, 2, 3]
    for count in (0, 5):
        with pytest.raises(ValueError, match="chosen"):
            choose(losses, count)


def test_experts_trained_apart_share_their_trunk_and_nothing_else():
    settings = with_dense(TINY)
    seed = byte_model(settings)
    models = train_apart(seed, settings, [TEXT[:100], TEXT[100:]])
    for name, original in named(seed.params).items():
        first, second = (named(m.params)[name] for m in models)
        if ".experts." in name:
            assert not np.array_equal(first, second) and not np.array_equal(first, original)
        else:
            assert np.array_equal(first, original) and np.array_equal(second, original)


def with_dense(settings):
    config = dense_shape(settings.model)
    return settings.but(experts=1, top_k=1, dense_layers=config.dense_layers)


@pytest.mark.parametrize("kind", ["swiglu", "gelu"])
def test_connected_copies_of_one_expert_are_that_expert(kind):
    one = model(dense_shape(replace(SPARSE, expert_kind=kind)))
    sparse = connect([one, one, one], 2, np.random.default_rng(0))
    np.testing.assert_allclose(logits(sparse), logits(one), rtol=1e-12, atol=1e-12)
    assert (sparse.config.experts, sparse.config.top_k, sparse.config.dense_layers) == (3, 2, ())


def test_connected_experts_stand_in_the_order_given():
    models = [model(dense_shape(SPARSE)) for _ in range(3)]
    stacks = named(connect(models, 2, RNG).params.blocks[1].mixture.experts)
    for i, single in enumerate(models):
        for name, a in named(single.params.blocks[1].mixture.experts).items():
            np.testing.assert_array_equal(stacks[name][i], a[0])


def test_parts_of_a_text():
    split = corpora.load_split(("toy",), 16, 3)
    parts = divide(split, 3, 9)
    assert list(parts) == ["sums", "brackets", "words", "clauses", "rows"]
    assert sum(map(len, parts.values())) == len(split.train)
    assert all(b"|" in line for line in parts["words"].tobytes().splitlines())
    halves = divide(split._replace(name="mine", train=np.arange(5)), 0, 2)
    assert {name: part.tolist() for name, part in halves.items()} == {"section 1": [0, 1, 2], "section 2": [3, 4]}


# --- search ---------------------------------------------------------------------------------------------------------


def test_halving_by_hand():
    """Losses fall with steps; b is worse than c at first and overtakes no one, so it must be gone after the first rung."""
    asked = []

    def measure(candidate, steps):
        asked.append((candidate, steps))
        return {"a": 1.0, "b": 4.0, "c": 3.0, "d": 2.0, "e": 9.0}[candidate] / steps

    rungs = search.halving("abcde", measure, 10, 3)
    assert [list(rung) for rung in rungs] == [["a", "b", "c", "d", "e"], ["a", "d"], ["a"]]
    assert asked[5:] == [("a", 20), ("d", 20), ("a", 40)]
    assert rungs[2] == {"a": 1 / 40}


def test_the_pareto_front_by_hand():
    costs, losses = np.array([1, 2, 3, 4, 2, 1]), np.array([5.0, 3, 4, 1, 3, 6])
    assert search.pareto(costs, losses).tolist() == [True, True, False, True, True, False]  # equal points both stay


def test_all_shapes_of_a_budget_have_the_same_expert_weights_at_work():
    found = search.shapes(24, 8)
    assert len(found) == len(set(found)) == 7 and found[0] == (1, 1, 24)
    assert {shape.top_k * shape.expert_width for shape in found} == {24}
    assert all(shape.top_k < shape.experts <= 8 for shape in found[1:])
    for shape in found:
        settings = search.with_candidate(TINY, shape)
        params = byte_model(settings).params
        total, active = search.parameters(params, settings.model)
        experts = 2 * 3 * 12 * 24  # in two layers three matrices between D and K·F
        routers = 0 if shape.experts == 1 else 2 * 12 * shape.experts
        rest = sum(p.size for name, p in named(params).items() if "mixture." not in name)
        assert active == rest + experts + routers
        assert total == active + experts * (shape.experts - shape.top_k) // shape.top_k


def test_shapes_are_compared_at_a_constant_learning_rate():
    own = search.with_candidate(TINY, search.Shape(4, 2, 6))
    rates = [own.training.rate(step) for step in (3, 6, 99)]
    assert rates == pytest.approx([own.training.lr] * 3)


def test_search_trains_each_shape_on_from_where_it_was():
    settings, candidates = TINY.but(steps=3), search.shapes(8, 2)
    results, winner = search.search(settings, candidates, TEXT, TEXT, 2)
    assert [(r.shape, r.steps) for r in results[:2]] == [(shape, 3) for shape in candidates]
    assert results[2].steps == 6 and results[2].shape == min(results[:2], key=lambda r: r.loss).shape
    own = search.with_candidate(settings, results[2].shape).but(steps=6)
    assert same(winner.params, fit(byte_model(own), own, TEXT).params)
    assert results[2].loss == evaluate(winner, TEXT)
    assert sum(search.unbeaten(results)) >= 2


# --- commands -------------------------------------------------------------------------------------------------------

SIZES = "--steps 6 --layers 1 --width 8 --heads 1 --kv-heads 1 --context 8 --batch-size 4 --expert-width 4".split()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("corpus") / "text.txt"
    file.write_text("the cat saw a dog; a dog ran over the hill, again and quietly.\n" * 200)
    return str(file)


@pytest.mark.parametrize(
    ("recipe", "flags", "words"),
    [
        ("upcycle", "--experts 4", ["sparse, made of it", "sparse from the start"]),
        ("distill", "--teacher-steps 5 --student dense", ["teacher", "dense student alone", "dense student, taught"]),
        ("distill", "--teacher-steps 5 --student sparse", ["sparse student, taught"]),
        ("prune", "--tune 2", ["the most missed", "2, 2 steps later"]),
        ("independent", "--experts 2 --parts 3", ["(not chosen)", "trained on together", "equal steps in all"]),
        ("search", "--rungs 2 --most 4", ["Pareto front", "top-2 of 4, width 4", "dense, width 8"]),
    ],
)
def test_each_command_prints_a_table_and_leaves_a_model_that_writes(recipe, flags, words, text, tmp_path, capsys):
    out = tmp_path / "out"
    assert command.main([recipe, "--corpus", text, "--out", str(out), *SIZES, *flags.split()]) == 0
    printed = capsys.readouterr().out
    for word in words:
        assert word in printed
    assert (out / "pareto.png").exists() == (recipe == "search")
    assert generate.main([str(out), "--tokens", "5"]) == 0
    _, config = load_model(out / "model.safetensors")
    assert resolve({}, out / "config.toml").model == config  # config.toml describes the model that is there


def test_recipes_start_from_a_model_that_is_there(text, tmp_path, capsys):
    dense, sparse = tmp_path / "dense", tmp_path / "sparse"
    common = ["--corpus", text, *SIZES]
    command.main(["distill", *common, "--student", "dense", "--teacher-steps", "2", "--out", str(dense)])
    short = ["--corpus", text, "--steps", "3"]
    command.main(["upcycle", str(dense), *short, "--experts", "6", "--out", str(sparse)])
    command.main(["prune", str(sparse), *short, "--tune", "0", "--keep", "4", "--out", str(tmp_path / "pruned")])
    assert load_model(tmp_path / "pruned" / "model.safetensors")[1].experts == 4
    printed = capsys.readouterr().out
    assert "| 6 |" in printed and "| 4 |" in printed and "steps later" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("upcycle --experts 4 --top-k 1", "top_k is 1"),
        ("upcycle --split 3", "split is 3"),
        ("upcycle --noise -1", "--noise"),
        ("distill --alpha 2", "alpha is 2"),
        ("distill --temperature 0", "temperature is 0"),
        ("prune --keep 1", "--keep is 1"),
        ("independent --experts 7 --parts 3", "--experts is 7"),
        ("independent --parts 0", "--parts is 0"),
        ("independent --parts 1000000", "shorter than a window"),
        ("search --rungs 9", "--rungs is 9"),
        ("search --rungs 0", "--rungs is 0"),
        ("search --budget -8", "--budget is -8"),
        ("distill --student pupil", "pupil"),
        ("search --corpus /nowhere/at/all", "/nowhere/at/all"),
        ("prune /nowhere/at/all", "no file"),
        ("prune /nowhere/at/all --layers 3", "--layers can't be given"),
        ("melt", "melt"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained_or_written(arguments, message, tmp_path):
    with pytest.raises(UserError, match=message):
        command.main([*arguments.split(), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_loss_that_explodes_ends_in_one_sentence(text, tmp_path):
    with pytest.raises(UserError, match=r"at step \d+; train with a lower --lr"):
        command.main(["prune", "--corpus", text, "--out", str(tmp_path / "out"), *SIZES, "--lr", "1e30"])
