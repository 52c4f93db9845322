"""The evaluation report: what is counted is what happens, what is measured is what training measured, and bad input."""

import json
import math
import sys

import numpy as np
import pytest

from tests.conftest import records
from tinymoe import errors, ops
from tinymoe.check.trials import language as trials
from tinymoe.data.corpora import Split
from tinymoe.data.windows import Batch, cut, evaluation_batches
from tinymoe.errors import UserError
from tinymoe.evaluate import __main__ as evaluate
from tinymoe.evaluate.sheet import Sheet
from tinymoe.evaluate.text import quality
from tinymoe.evaluate.trained import load_run, other_texts
from tinymoe.models import accounting
from tinymoe.models.balancing import UNBALANCED
from tinymoe.models.config import LanguageConfig
from tinymoe.models.evaluation import Measured, measure
from tinymoe.models.initialise import initialize
from tinymoe.models.language import forward, loss
from tinymoe.models.parameters import Attention, Block, Experts, Language, Mixture, Norm, Router
from tinymoe.runs.state import save_model
from tinymoe.train import __main__ as train
from tinymoe.tree import named, tree_map

SMALL = (
    "--layers 2 --width 16 --heads 2 --kv-heads 1 --experts 4 --expert-width 8 --context 16 --batch-size 5 --warmup 5 "
    "--sample-tokens 0 --eval-every 10 --checkpoint-every 10 --dense-layers 0 --workers 1 --steps 30"
).split()


# --- accounting -----------------------------------------------------------------------------------------------------


class Counted(np.ndarray):
    """An array whose matrix products are counted, as are those of what is computed from it."""

    multiply_adds = 0

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **options):
        plain = [np.asarray(a) if isinstance(a, Counted) else a for a in inputs]
        if out:
            options["out"] = tuple(np.asarray(a) for a in out)
        result = getattr(ufunc, method)(*plain, **options)
        if ufunc is np.matmul:
            Counted.multiply_adds += result.size * plain[0].shape[-1]
        return result.view(Counted) if isinstance(result, np.ndarray) else result


def weighed(rows, weights, assignment):
    """`combine`, of whose product only what experts returned counts, not the zeros for tokens that they did not take."""
    Counted.multiply_adds += rows.size
    return ops.combine(np.asarray(rows), np.asarray(weights), assignment)


MODELS = {
    **{name: options for name, options in trials.MODELS.items() if "vision" not in options},
    "a hidden layer in the router, residual shared experts": {
        "scores": "mlp",
        "shared_experts": 2,
        "shared": "residual",
    },
    "Soft MoE beside a dense layer and a shared expert": {
        "router": "soft",
        "shared_experts": 1,
        "shared": "gated",
        "dense_layers": (1,),
    },
    "all experts, GELU": {"router": "dense", "expert_kind": "gelu"},
    "expert choice, capacity 0.5": {"router": "expert-choice", "capacity_factor": 0.5},
    "expert choice, more capacity than tokens": {"router": "expert-choice", "capacity_factor": 3.0},
    "a table of tokens": {"router": "partition", "top_k": 1, "dense_layers": (0,)},
}


def small(options):
    """A config, and parameters without zeros: a router that starts at 0 would leave all experts equal."""
    config = LanguageConfig(**{**trials.SMALL, **options})
    rng = np.random.default_rng(0)
    params = tree_map(lambda leaf: leaf + 0.3 * rng.standard_normal(leaf.shape), initialize(config, rng, np.float64))
    return config, params, rng


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_the_formula_counts_the_multiply_adds_that_are_carried_out(options, monkeypatch):
    config, params, rng = small(options)
    monkeypatch.setattr(sys.modules["tinymoe.ops.moe"], "combine", weighed)
    B, T = 4, config.context
    Counted.multiply_adds = 0
    forward(tree_map(lambda leaf: leaf.view(Counted), params), config, rng.integers(0, config.vocabulary, (B, T)))
    expected = sum(accounting.flops_by_part(config, T, masked=True).values()) * B * T
    assert 2 * Counted.multiply_adds == pytest.approx(expected, rel=1e-12)


def test_a_token_needs_the_scores_of_the_tokens_up_to_its_own():
    config, T = LanguageConfig(layers=3, width=12, heads=2, kv_heads=2), 7
    needed, computed = (accounting.flops_by_part(config, T, masked=masked) for masked in (False, True))
    pairs = sum(1 for query in range(T) for key in range(T) if key > query)  # that the mask hides
    assert (computed["attention"] - needed["attention"]) * T == 2 * config.layers * pairs * 2 * config.width
    assert {p: needed[p] for p in needed if p != "attention"} == {p: computed[p] for p in computed if p != "attention"}
    assert accounting.flops_per_token(config, T) == sum(needed.values())


@pytest.mark.parametrize(
    "options", [o for o in MODELS.values() if o.get("router") != "expert-choice"], ids=lambda o: str(o)[:60]
)
def test_active_parameters_are_all_but_those_of_experts_that_get_no_gradient_from_a_token(options):
    config, params, rng = small(options)
    ids, targets = rng.integers(0, config.vocabulary, (2, 1, 1))
    _, backward = loss(params, config, Batch(ids, targets), UNBALANCED)
    idle = sum(
        one.size
        for block in backward().blocks
        if block.mixture.router is not None
        for stack in named(block.mixture.experts).values()
        for one in stack
        if not one.any()
    )
    total = sum(p.size for p in named(params).values())
    assert accounting.active_parameters(params, config) == total - idle
    assert sum(accounting.parameters_by_part(params).values()) == total


def test_where_experts_choose_a_token_has_capacity_times_k_of_them_on_average_and_never_more_than_all():
    for factor, mean in [(0.0, 2), (0.5, 1), (1.5, 3), (9.0, 4)]:  # 0 stands for 1
        options = {"router": "expert-choice", "capacity_factor": factor}
        config, params, _ = small(options)
        experts = accounting.parameters_by_part(params)["experts"]
        total = sum(p.size for p in named(params).values())
        assert accounting.active_parameters(params, config) == total - experts * (4 - mean) // 4


def test_the_counts_of_mixtral_are_the_published_ones():
    """Mixtral 8x7B (Jiang et al. 2024, table 1) has 46.7 billion parameters, 12.9 of them active."""
    config = LanguageConfig(32000, 32768, 32, 4096, 32, 8, 8, 2, 14336, tied=False)
    shape = lambda *lengths: np.broadcast_to(np.float32(0), lengths)  # noqa: E731 (a view of one number: no memory)
    D, F, E, G = config.width, config.expert_width, config.experts, config.width // 4
    experts = Experts(up=shape(E, D, F), down=shape(E, F, D), gate=shape(E, D, F))
    mixture = Mixture(router=Router(weight=shape(D, E)), experts=experts)
    attention = Attention(query=shape(D, D), key=shape(D, G), value=shape(D, G), output=shape(D, D))
    norm = Norm(gain=shape(D))
    blocks = (Block(attention_norm=norm, attention=attention, mixture_norm=norm, mixture=mixture),) * config.layers
    params = Language(embedding=shape(32000, D), blocks=blocks, norm=norm, head=shape(D, 32000))
    assert sum(accounting.parameters_by_part(params).values()) == 46_702_792_704
    assert round(accounting.active_parameters(params, config) / 1e9, 1) == 12.9


# --- measuring ------------------------------------------------------------------------------------------------------


def test_loss_accuracy_and_load_are_those_of_each_window_by_itself():
    config, params, rng = small({"dense_layers": (0,)})
    tokens = rng.integers(0, config.vocabulary, 200).astype(np.uint8)
    found = measure(params, config, evaluation_batches(tokens, 6, 5))
    losses, right, counts = [], [], np.zeros(4, int)
    for start in range(0, 200 - 6, 6):
        window = cut(tokens, np.array([start]), 6)
        (logits, _, routed), _ = forward(params, config, window.ids)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        assert window.targets is not None
        for row, target in zip(p, window.targets[0], strict=True):
            losses.append(-math.log(row[target]))
            right.append(row[target] == row.max())
        counts += np.bincount(routed[1].indices.reshape(-1), minlength=4)
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-12)
    assert (found.accuracy, found.tokens) == (np.mean(right), len(losses))
    assert found.counts[0] is None
    np.testing.assert_array_equal(found.counts[1], counts)


def test_a_model_that_knows_nothing_needs_eight_bits_for_a_byte():
    config = LanguageConfig(layers=1, width=4, heads=2, kv_heads=2, experts=2, expert_width=3, tied=False)
    params = initialize(config, np.random.default_rng(0))
    params.head = np.zeros_like(params.head)
    ids = np.full((2, 5), 65)
    found = measure(params, config, [Batch(ids, ids)])
    values = {name: value for name, value, _ in quality(found, None)}
    assert values["bits per byte"] == pytest.approx(8)
    assert values["perplexity"] == pytest.approx(256)
    assert values["next-token accuracy"] == 0  # the first of 256 equally likely bytes is 0, and never right


def test_a_report_is_flush_and_its_json_is_valid_though_a_loss_is_not_finite():
    report = Sheet("a model")
    report.add("one", ("short", 1234567, "numbers"), ("a longer name", math.inf, "nats"))
    report.add("nothing")
    report.add("two", ("x", 0.123456, ""))
    assert report.table().splitlines() == [
        "a model",
        "",
        "one",
        "  short          1,234,567  numbers",
        "  a longer name        inf  nats",
        "",
        "two",
        "  x                 0.1235",
    ]
    plain = json.loads(json.dumps(report.plain(), allow_nan=False))
    assert plain["numbers"]["one"]["a longer name"] == {"value": None, "unit": "nats"}
    assert plain["numbers"]["two"]["x"]["value"] == report.value("two", "x") == 0.123456
    assert math.isinf(dict(r[:2] for r in quality(Measured(1e4, 0, 1, 1, ()), None))["perplexity"])


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "a"
    train.main(["--corpus", str(text), "--out", str(folder), *SMALL])
    return folder


def report_of(folder, *args):
    file = folder.parent / "report.json"
    assert evaluate.main([str(folder), "--json", str(file), *map(str, args)]) == 0
    return json.loads(file.read_text(encoding="utf-8"))["numbers"]


def test_the_command_reports_what_training_found_and_what_the_folder_holds(trained, capsys):
    numbers = report_of(trained)
    recorded = records(trained)
    validation, last = numbers["validation text"], [r for r in recorded if r["split"] == "val"][-1]
    assert validation["loss"]["value"] == pytest.approx(last["loss"], rel=1e-6)
    assert validation["predicted"]["value"] == numbers["training text"]["predicted"]["value"] == last["predicted"]
    work = load_run(trained)
    assert isinstance(work.corpus, Split)
    windows = evaluation_batches(work.corpus.train, 16, 64, last["predicted"] // 16)
    on_training_text = measure(work.params, work.settings.model, windows)
    assert numbers["training text"]["loss"]["value"] == pytest.approx(on_training_text.loss, rel=1e-6)
    gap = validation["loss"]["value"] - numbers["training text"]["loss"]["value"]
    assert numbers["generalisation"]["train–validation gap"]["value"] == gap
    assert {name for name in numbers if name.startswith("other text")} == {"other text: toy", "other text: pydoc"}
    assert numbers["generalisation"]["to toy"]["value"] > 0  # prose does not teach sums and brackets
    assert numbers["other text: toy"]["entropy of the source"]["value"] == pytest.approx(0.855, abs=1e-3)
    total = sum(p.size for p in named(work.params).values())
    active = accounting.active_parameters(work.params, work.settings.model)
    assert numbers["parameters"]["total"]["value"] == total
    assert numbers["parameters"]["active per token"]["value"] == active < total
    assert numbers["memory"]["parameters"]["value"] == 4 * total
    assert numbers["memory"]["model.safetensors"]["value"] == (trained / "model.safetensors").stat().st_size
    assert numbers["time"]["forward"]["value"] > 0
    assert numbers["time"]["training"] == {"value": recorded[-1]["seconds"], "unit": "s for 30 steps"}
    assert set(numbers["expert load on the validation text"]) == {"layer 1, MaxVio", "layer 1, entropy"}
    printed = capsys.readouterr().out
    assert "next-token accuracy" in printed
    assert f"{total:,}  numbers" in printed


def test_the_parts_add_up_to_the_total(trained):
    numbers = report_of(trained, "--windows", 3, "--corpus", "toy")
    (operations,) = (numbers[group] for group in numbers if group.startswith("operations"))
    for group, further in ((numbers["parameters"], {"active per token"}), (operations, set())):
        parts = [found["value"] for name, found in group.items() if name not in {"total", *further}]
        assert sum(parts) == group["total"]["value"]


def test_the_same_folder_gives_the_same_numbers_but_for_the_time(trained):
    first, second = (report_of(trained, "--windows", 20, "--corpus", "toy") for _ in range(2))
    assert {**first, "time": 0} == {**second, "time": 0}
    assert first["validation text"]["predicted"]["value"] == first["other text: toy"]["predicted"]["value"] == 20 * 16


def test_of_a_corpus_that_was_trained_on_only_the_held_out_tenth_counts_as_other_text(text, trained):
    work = load_run(trained)
    own, toy = other_texts([str(text), "toy", "toy"], work)
    assert isinstance(work.corpus, Split)
    np.testing.assert_array_equal(own.tokens, work.corpus.val)
    assert len(toy.tokens) > 900_000


def test_zeros_of_a_sparse_model_are_told_apart(text, tmp_path):
    flags = [*SMALL, "--sparsity", "init", "--sparsity-level", "0.9"]
    train.main(["--corpus", str(text), "--out", str(tmp_path / "a"), *flags])
    parameters = report_of(tmp_path / "a", "--windows", 2, "--corpus", "toy")["parameters"]
    sparse = sum(parameters[part]["value"] for part in ("attention", "experts", "dense layers"))
    zeros = parameters["total"]["value"] - parameters["not zero"]["value"]
    assert 0.85 * sparse < zeros < 0.95 * sparse


def copy(trained, folder):
    folder.mkdir()
    for file in trained.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def nothing(folder):
    (folder / "config.toml").unlink()


def no_model(folder):
    (folder / "model.safetensors").unlink()


def damaged_model(folder):
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 64
    file.write_bytes(data)


def another_model(folder):
    config = LanguageConfig(layers=1, width=4, heads=2, kv_heads=2)
    save_model(folder / "model.safetensors", initialize(config, np.random.default_rng(0)), config)


def another_text(folder):
    file = folder.parent / "changed.txt"
    file.write_text("quite another text " * 300)
    config = folder / "config.toml"
    lines = config.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("corpus"))
    end = next(i for i in range(start, len(lines)) if "]" in lines[i])
    config.write_text("\n".join([*lines[:start], f'corpus = ["{file}"]', *lines[end + 1 :]]), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "flags", "message"),
    [
        (nothing, [], "not the folder of a run"),
        (no_model, [], "has no model.safetensors yet; .* --resume"),
        (damaged_model, [], "is damaged"),
        (another_model, [], "not of the same run"),
        (another_text, [], "not the text that .* was trained on"),
        (None, ["--corpus", "nowhere.txt"], "can't read the corpus .*nowhere.txt"),
        (None, ["--corpus", "docstrings:nonsense_package"], "no package 'nonsense_package'"),
        (None, ["--corpus", "SHORT"], "has 9 bytes; .* at least 17"),
        (None, ["--windows", "0"], "--windows is 0; it must be at least 1"),
        (None, ["--json", "nowhere/report.json"], "no folder nowhere"),
        (None, ["--window", "x"], "invalid int value"),
    ],
)
def test_what_a_user_can_mend_is_said_in_one_sentence(trained, tmp_path, capsys, spoil, flags, message):
    (tmp_path / "short.txt").write_text("too short")
    folder = copy(trained, tmp_path / "a")
    if spoil:
        spoil(folder)
    flags = [str(tmp_path / "short.txt") if flag == "SHORT" else flag for flag in flags]
    with pytest.raises(UserError, match=message) as raised:
        evaluate.main([str(folder), *flags])
    assert "\n" not in str(raised.value)
    with pytest.raises(SystemExit) as ended:
        errors.run(lambda: evaluate.main([str(folder), *flags]))
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("error:") == 1
