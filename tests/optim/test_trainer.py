"""All that trains here trains by `Trainer.step`, and all that evaluates a language model by one function."""

import ast

import numpy as np
import pytest

from tests.conftest import ROOT
from tinymoe import SparseMoeModel
from tinymoe.data.windows import evaluation_batches
from tinymoe.documents import big_language_model, feature_experts, lstm_experts, sparse_gate, sparse_weights
from tinymoe.documents.fit import train as train_rows
from tinymoe.models.evaluation import measure
from tinymoe.optim.trainer import Trainer
from tinymoe.recipes.distill import distill
from tinymoe.recipes.fit import evaluate, fit, for_steps, new_model
from tinymoe.runs.settings import resolve
from tinymoe.runs.state import new_state, new_trainer
from tinymoe.train import __main__ as train

TEXT = np.random.default_rng(0).integers(0, 256, 400).astype(np.uint8)
SMALL = {"layers": 1, "width": 8, "heads": 2, "kv_heads": 1, "experts": 2, "top_k": 1, "expert_width": 4, "context": 8}
SETTINGS = for_steps(resolve({**SMALL, "batch_size": 4, "workers": 1}), 3)
X = np.random.default_rng(1).random((8, 3))
IDS = np.ones((8, 3), int)


def command(tmp_path):
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in SMALL.items())
    text = tmp_path / "text.txt"
    text.write_text("a b c\n" * 60)
    train.main(f"--corpus {text} --steps 3 --workers 1 --sample-tokens 0 --out {tmp_path / 'run'} {flags}".split())


def language_rows(tmp_path):
    texts = np.array(["abc", "bcd", "cde"])
    p = big_language_model.new_language_model(np.random.default_rng(0), 8, 1, 2, 4)
    list(train_rows(p, big_language_model.language_loss, (texts,), epochs=3, rng=np.random.default_rng(0)))


TRAINED = {  # what trains, and in how many steps
    "the command": (command, 3),
    "a recipe": (lambda _: fit(new_model(SETTINGS.model, 0), SETTINGS, TEXT), 3),
    "distillation": (lambda _: distill(new_model(SETTINGS.model, 1), new_model(SETTINGS.model, 0), SETTINGS, TEXT), 3),
    "the estimator": (lambda _: SparseMoeModel(epochs=2, batch_size=4).fit(X, X[:, 0]), 4),
    "feature experts": (lambda _: feature_experts.SparseExpertModel(2).train(X, X[:, :1], epochs=3), 3),
    "sparse gate": (lambda _: sparse_gate.SparseExpertModel(3, 3, 2, 1).train(X, X[:, :2], epochs=3), 3),
    "big language model": (language_rows, 3),
    "LSTM experts": (lambda _: lstm_experts.LSTMExperts(5, 3, 4, 2).fit(IDS, IDS, epochs=3), 3),
    "sparse weights": (
        lambda _: sparse_weights.SparseExpertLanguageModel(V=5, D=4, H=2).train(IDS, IDS, epochs=3),
        3,
    ),
}


@pytest.mark.parametrize(("trains", "steps"), TRAINED.values(), ids=TRAINED)
def test_everything_trains_by_one_step(trains, steps, tmp_path, monkeypatch):
    taken, step = [], Trainer.step

    def counted(self, batch):
        taken.append(type(self.objective).__name__)
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", counted)
    trains(tmp_path)
    assert len(taken) == steps


def test_optimisers_are_called_in_their_own_folder_only():
    """No other training loop can be written without calling one of them."""
    forbidden = {"adamw", "sgd", "OPTIMIZERS", "clip_factor", "global_norm"}
    for file in (ROOT / "tinymoe").rglob("*.py"):
        if file.parent.name != "optim":
            names = {n.id for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Name)}
            attributes = {n.attr for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Attribute)}
            assert not forbidden & (names | attributes), file


def test_one_evaluation():
    """The trainer, on one process or two, the recipes and the report find the same number, to the bit."""
    batches = list(evaluation_batches(TEXT, SETTINGS.model.context, 16))
    losses = []
    for workers in (1, 2):
        state = new_state(SETTINGS)
        with new_trainer(state, SETTINGS.but(workers=workers)) as trainer:
            losses.append(trainer.evaluate(batches))
    model = new_model(SETTINGS.model, SETTINGS.run.seed)
    found = measure(*model, batches)
    assert losses == [(found.loss, found.tokens)] * 2
    assert evaluate(model, TEXT) == found.loss
