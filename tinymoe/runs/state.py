"""What changes during training, and how it is kept in a run's folder."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..models.config import LanguageConfig, VisionConfig
from ..models.initialise import initialize, skeleton
from ..models.parameters import Language
from ..optim import sparsify
from ..optim.hyperparameters import NotFinite, State, fresh
from ..optim.trainer import Trainer
from ..sparse import CSR
from ..tree import named, with_leaves, with_role
from ..types import Array
from .checkpoint import load_arrays, save_arrays
from .folder import CHECKPOINT, MODEL
from .settings import Settings, from_plain, to_plain


def new_parameters(config: LanguageConfig, rng: np.random.Generator) -> Language:
    """Random ones. Raises UserError for sizes that no memory holds."""
    try:
        return initialize(config, rng)
    except (ValueError, OverflowError, MemoryError) as error:
        raise UserError(f"a model of these sizes can't be made ({error}); choose smaller ones") from None


def new_state(settings: Settings) -> State:
    """Random parameters, and an optimiser that has seen nothing."""
    rng = np.random.default_rng(settings.run.seed)
    state = fresh(new_parameters(settings.model, rng), settings.training)
    leaves = named(state.params)
    weights = {name: leaves[name] for name in with_role(state.params, "sparsifiable")}
    for name, mask in sparsify.first_masks(weights, settings.sparsity, rng).items():
        state.slots[name]["mask"] = mask
    return state


def new_trainer(state: State, settings: Settings) -> Trainer:
    """What trains a run's state."""
    run = settings.run
    options: dict[str, Any] = {"sparsity": settings.sparsity, "workers": run.workers, "seed": run.seed}
    return Trainer(state, settings.objective, settings.training, **options)


def save_state(folder: Path, state: State, settings: Settings, corpus_sha256: str) -> None:
    """Write the checkpoint, then the model; each whole or not at all. Raises NotFinite before overwriting a good one."""
    for name, p in named(state.params).items():
        if not np.isfinite(p).all():
            raise NotFinite(f"{name} is not finite any more after step {state.step}")
    arrays = {f"params.{name}": p for name, p in named(state.params).items()}
    arrays |= {f"{slot}.{name}": a for name, slots in state.slots.items() for slot, a in slots.items()}
    save_arrays(
        folder / CHECKPOINT,
        arrays,
        {"settings": to_plain(settings), "step": state.step, "seconds": state.seconds, "corpus_sha256": corpus_sha256},
    )
    save_model(folder / MODEL, state.params, settings.model, sparse=settings.sparsity.on)


def load_state(folder: Path) -> tuple[State, Settings, str]:
    """State, settings and the corpus's sha256 as `save_state` wrote them. Raises UserError for a damaged file."""
    path = folder / CHECKPOINT
    arrays, metadata = load_arrays(path)
    try:
        settings = Settings.of(**from_plain(metadata["settings"], str(path)))
        state = new_state(settings)
        params = _fill(named(state.params), arrays, "params", path)
        for name, slots in state.slots.items():
            for slot in slots:
                slots[slot] = _fill({name: slots[slot]}, arrays, slot, path)[name]
        return (
            State(with_leaves(state.params, params), state.slots, metadata["step"], metadata["seconds"]),
            settings,
            metadata["corpus_sha256"],
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not a checkpoint of this version ({error}); train anew") from None


def save_model(path: Path, params: Language, config: LanguageConfig, sparse: bool = False) -> None:
    """The parameters alone, with the shape of the model as metadata.

    With `sparse`, attention and expert matrices that take less room that way are stored as CSR, in three arrays
    `NAME.indptr`, `NAME.indices` and `NAME.data`; the matrices of a stack stand below one another.
    """
    arrays = dict(named(params))
    for name in with_role(params, "sparsifiable") if sparse else ():
        csr = sparsify.as_csr(arrays[name])
        if csr.nbytes < arrays[name].nbytes:
            del arrays[name]
            arrays |= {f"{name}.indptr": csr.indptr, f"{name}.indices": csr.indices, f"{name}.data": csr.data}
    save_arrays(path, arrays, {"config": asdict(config)})


def load_model(path: Path, keep_sparse: bool = False) -> tuple[Language, LanguageConfig]:
    """What `save_model` wrote. Matrices stored as CSR are filled in, or, with `keep_sparse`, stay `CSR`.

    Raises UserError for a file that is missing, damaged or not a language model.
    """
    arrays, metadata = load_arrays(path)
    try:
        shape: dict[str, Any] = metadata["config"]
        vision = shape["vision"] and VisionConfig(**{**shape["vision"], "image": tuple(shape["vision"]["image"])})
        config = LanguageConfig(**{**shape, "dense_layers": tuple(shape["dense_layers"]), "vision": vision})
        template = skeleton(config)
        leaves, found = named(template), dict[str, Any]()
        for name, leaf in leaves.items():
            if f"{name}.indptr" in arrays:
                indptr, indices, data = (arrays[f"{name}.{part}"] for part in ("indptr", "indices", "data"))
                csr = CSR(indptr, indices, data, (leaf.size // leaf.shape[-1], leaf.shape[-1]), keep_zeros=True)
                found[name] = csr if keep_sparse else csr.to_dense().reshape(leaf.shape)
        found |= _fill({name: leaf for name, leaf in leaves.items() if name not in found}, arrays, "", path)
        return with_leaves(template, found), config
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} does not hold a language model ({error})") from None


def _fill(leaves: dict[str, Array], arrays: dict[str, Array], prefix: str, path: Path) -> dict[str, Array]:
    """The arrays for these leaves, each checked to have the leaf's shape."""
    found = {}
    for name, leaf in leaves.items():
        key = f"{prefix}.{name}" if prefix else name
        if key not in arrays or arrays[key].shape != leaf.shape:
            raise UserError(f"{path} has no {key} of shape {leaf.shape}, which its own settings ask for")
        found[name] = arrays[key]
    return found
