"""What the commands do: train or load a model, apply a recipe, compare, print, and keep the result."""

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from ..data import corpora
from ..errors import UserError, say
from ..runs import plots
from ..runs.folder import MODEL, new_folder, write_config
from ..runs.settings import PRESETS, Settings, flag, resolve
from ..runs.state import load_model, save_model
from . import search
from .distill import distill
from .fit import Model, evaluate, fit, for_steps, new_model, table, token_losses, with_shape
from .independent import choose, connect, dense_shape, divide, train_apart
from .prune import best, check_prunable, damage, prune_experts, usage
from .upcycle import upcycle

SHAPE = ("context", "layers", "width", "heads", "kv_heads", "experts", "top_k", "expert_width")
TRAINING = ("seed", "steps", "batch_size", "lr")
DEFAULTS = {**PRESETS["quick"], "preset": "quick", "steps": 300}
WINDOWS = 300  # of validation text for each number in a table
DECIDING = 60  # of training text, to decide which experts are removed


class Job:
    """What the commands share: the flags, the text and the folder for the result."""

    def __init__(self, given: argparse.Namespace) -> None:
        flags = {name: value for name, value in vars(given).items() if name in (*SHAPE, *TRAINING)}
        allowed = ("experts", "top_k") if given.recipe == "upcycle" else SHAPE if given.recipe == "distill" else ()
        self.given, self.model, self.held = given, None, ExitStack()
        if getattr(given, "folder", None):
            surplus = [flag(name) for name in SHAPE if name in flags and name not in allowed]
            if surplus:
                raise UserError(
                    f"{', '.join(surplus)} can't be given with a model, whose shape is {given.folder}'s own"
                )
            self.model = Model(*load_model(given.folder / MODEL))
            if self.model.config.vocabulary != 256:
                raise UserError(f"the model in {given.folder} is not over bytes, so there is no text to train it on")
            flags.setdefault("context", self.model.config.context)
        settings = resolve(DEFAULTS | {"corpus": tuple(given.corpus or ["pydoc"]), "workers": 1} | flags)
        self.settings = for_steps(settings, settings.run.steps)
        self.text = corpora.load_split(settings.data.corpus, settings.model.context, settings.run.seed)
        self.rng = np.random.default_rng(settings.run.seed)

    def begin(self) -> None:
        """Make the folder, when the rest of what the user gave has been checked."""
        self.folder = new_folder(self.given.out, self.given.overwrite, self.settings, self.held)

    @property
    def dense(self) -> Settings:
        return self.settings.but(dense_layers=tuple(range(self.settings.model.layers)))

    def trained(self, settings: Settings) -> Model:
        """A new model, trained as the settings say."""
        return fit(new_model(settings.model, settings.run.seed), settings, self.text.train)

    def further(self, model: Model, steps: int) -> Model:
        """The model after so many steps more, on windows drawn anew."""
        settings = for_steps(with_shape(self.settings, model.config), steps).but(seed=self.settings.run.seed + 1)
        return fit(model, settings, self.text.train)

    def loss(self, model: Model) -> float:
        return evaluate(model, self.text.val, WINDOWS)

    def finish(self, head: str, rows: list[tuple[Any, ...]], model: Model) -> int:
        """Print the table and keep the model."""
        say(table(head.split(" | "), rows))
        write_config(self.folder, with_shape(self.settings, model.config))
        save_model(self.folder / MODEL, model.params, model.config)
        say(f"\nlosses are nats per byte of validation text; the model is in {self.folder}")
        return 0


def run_upcycle(job: Job) -> int:
    given, steps = job.given, job.settings.run.steps
    k, experts = job.settings.model.top_k, job.settings.model.experts

    def sparse_of(dense: Model) -> Model:
        return upcycle(*dense, experts, k, np.random.default_rng(job.settings.run.seed), given.noise, given.split or k)

    checked(lambda: sparse_of(job.model or new_model(job.dense.model, 0)))
    job.begin()
    dense = job.model or job.trained(job.dense)
    sparse = sparse_of(dense)
    after = job.further(sparse, steps)
    rows: list[tuple[Any, ...]] = [
        ("dense", 0, job.loss(dense)),
        ("sparse, made of it", 0, job.loss(sparse)),
        ("dense", steps, job.loss(job.further(dense, steps))),
        ("sparse, made of it", steps, job.loss(after)),
    ]
    if job.model is None:
        scratch = job.trained(for_steps(with_shape(job.settings, sparse.config), 2 * steps))
        rows.append(("sparse from the start", "all", job.loss(scratch)))
    return job.finish("model | steps more | loss", rows, after)


def run_distill(job: Job) -> int:
    given, settings = job.given, job.settings if job.given.student == "sparse" else job.dense
    other = job.dense if given.student == "sparse" else job.settings
    lesson = for_steps(other.but(expert_width=2 * other.model.expert_width), given.teacher_steps)
    begin = new_model(settings.model, settings.run.seed)
    once = for_steps(settings, 1)
    checked(lambda: distill(job.model or begin, begin, once, job.text.train, given.alpha, given.temperature))
    job.begin()
    teacher = job.model or job.trained(lesson)
    taught = distill(teacher, begin, settings, job.text.train, given.alpha, given.temperature)
    rows = [
        ("teacher", job.loss(teacher)),
        (f"{given.student} student alone", job.loss(fit(begin, settings, job.text.train))),
        (f"{given.student} student, taught", job.loss(taught)),
    ]
    return job.finish("model | loss", rows, taught)


def run_prune(job: Job) -> int:
    given, config = job.given, job.model.config if job.model else job.settings.model
    keep = given.keep or max(config.experts // 2, config.top_k)
    if not config.top_k <= keep < config.experts:
        raise UserError(
            f"--keep is {keep}; it must be at least top_k, {config.top_k}, and below the {config.experts} experts"
        )
    checked(lambda: check_prunable(config))
    job.begin()
    model = job.model or job.trained(job.settings)
    seen = job.text.train  # it decides what to remove, validation text judges
    missed, used = damage(model, seen, DECIDING), usage(model, seen, DECIDING)
    orders = {"used": used, "missed": missed, "random": job.rng.random(used.shape)}
    rows: list[tuple[Any, ...]] = [(config.experts, *[job.loss(model)] * len(orders))]
    for count in range(config.experts - 1, keep - 1, -1):
        pruned = [prune_experts(*model, best(scores, count)) for scores in orders.values()]
        rows.append((count, *map(job.loss, pruned)))
    last = prune_experts(*model, best(missed, keep))
    if given.tune:
        last = job.further(last, given.tune)
        rows.append((f"{keep}, {given.tune} steps later", "", job.loss(last), ""))
    return job.finish("experts kept | the most used | the most missed | random ones", rows, last)


def run_independent(job: Job) -> int:
    settings, model, seed, steps = job.settings, job.settings.model, job.settings.run.seed, job.settings.run.steps
    parts = divide(job.text, seed, job.given.parts)
    if not model.top_k <= model.experts <= len(parts):
        raise UserError(
            f"--experts is {model.experts}; it must lie between top_k and the {len(parts)} parts of the text"
        )
    if min(map(len, parts.values())) <= model.context:
        raise UserError(f"a part of the text is shorter than a window of {model.context}; lower --parts or --context")
    job.begin()
    alone = with_shape(settings, dense_shape(model))
    trunk = job.trained(alone)
    candidates = train_apart(trunk, alone.but(seed=seed + 1), list(parts.values()))
    half = len(job.text.val) // 2  # one half chooses, the other judges
    choosing, job.text = job.text.val[:half], job.text._replace(val=job.text.val[half:])
    losses = np.stack([token_losses(model, choosing, WINDOWS).reshape(-1) for model in candidates])
    chosen = choose(losses, model.experts)
    connected = connect([candidates[i] for i in chosen], model.top_k, job.rng)
    together = job.further(connected, steps)
    rows = [("common trunk, dense", steps, job.loss(trunk))]
    for i, (name, candidate) in enumerate(zip(parts, candidates, strict=True)):
        rows.append((f"expert of {name}{'' if i in chosen else ' (not chosen)'}", steps, job.loss(candidate)))
    rows += [("connected, router random", 0, job.loss(connected)), ("trained on together", steps, job.loss(together))]
    for count, what in ((3, "time if the experts train side by side"), (2 + len(parts), "steps in all")):
        joint = job.trained(for_steps(settings, count * steps))
        rows.append((f"joint training, equal {what}", count * steps, job.loss(joint)))
    return job.finish("model | steps | loss", rows, together)


def run_search(job: Job) -> int:
    given, settings = job.given, job.settings
    candidates = search.shapes(given.budget or settings.model.top_k * settings.model.expert_width, given.most)
    if len(candidates) >> (given.rungs - 1) < 1:
        raise UserError(f"--rungs is {given.rungs}; {len(candidates)} shapes can't be halved {given.rungs - 1} times")
    job.begin()
    results, model = search.search(settings, candidates, job.text.train, job.text.val, given.rungs)
    rows = [
        (str(r.shape), r.steps, r.total, r.active, 1000 * r.seconds, r.loss, "yes" if first else "")
        for r, first in zip(results, search.unbeaten(results), strict=True)
    ]
    plots.save(job.folder / "pareto.png", search.draw(results))
    rows.sort(key=lambda row: (row[1], row[5]))
    return job.finish("shape | steps | parameters | active | processor ms a step | loss | Pareto front", rows, model)


def checked(work: Callable[[], Any]) -> Any:
    """Its result; what is wrong with the arguments becomes a UserError."""
    try:
        return work()
    except ValueError as error:
        raise UserError(str(error)) from None
