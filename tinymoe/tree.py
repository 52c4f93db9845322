"""Parameters are nested dataclasses and tuples whose leaves are arrays, or sparse matrices; None stands for no part.

A gradient has the type of its parameters. Names such as `blocks.0.mixture.router` are derived here, once, for
checkpoints, reports and the optimiser. What kind of thing a leaf is, such as a matrix or a part of an expert, is said
where its field is declared (`leaf`) and asked for by name (`roles`).
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, field, fields, is_dataclass
from typing import Any, TypeVar

import numpy as np

from .sparse import Sparse

Tree = TypeVar("Tree")


def tree_map(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """A tree of the same type whose leaves are `function(leaf, *other leaves)`."""
    return _map(lambda name, *leaves: function(*leaves), "", tree, *others)


def named(tree: Any) -> dict[str, np.ndarray]:
    """Every leaf by its dotted name, in the order of the fields."""
    leaves: dict[str, np.ndarray] = {}
    _map(leaves.__setitem__, "", tree)
    return leaves


def with_leaves(tree: Tree, arrays: Mapping[str, np.ndarray | Sparse]) -> Tree:
    """The same tree with the leaves taken from `arrays` by name. Raises KeyError for a missing name."""
    return _map(lambda name, leaf: arrays[name], "", tree)


def leaf(*roles: str, default: Any = MISSING) -> Any:
    """A field for a leaf with these roles."""
    return field(default=default, metadata={"roles": frozenset(roles)})


def roles(tree: Any) -> dict[str, frozenset[str]]:
    """The roles of every leaf by its dotted name; none for a leaf whose field states none."""
    found: dict[str, frozenset[str]] = {}

    def look(name: str, part: Any, own: frozenset[str]) -> None:
        prefix = name + "." if name else ""
        if isinstance(part, np.ndarray | Sparse):
            found[name] = own
        elif isinstance(part, tuple):
            for i, item in enumerate(part):
                look(f"{prefix}{i}", item, own)
        elif part is not None:
            for f in fields(part):
                look(prefix + f.name, getattr(part, f.name), f.metadata.get("roles", frozenset()))

    look("", tree, frozenset())
    return found


def with_role(tree: Any, role: str) -> list[str]:
    """The names of the leaves that have a role."""
    return [name for name, of in roles(tree).items() if role in of]


def values_of(tree: Any) -> dict[str, np.ndarray]:
    """The numbers of a model, by dotted name: an array itself, of a sparse matrix its stored values (nnz,)."""
    leaves: dict[str, Any] = named(tree)
    return {name: leaf.data if isinstance(leaf, Sparse) else leaf for name, leaf in leaves.items()}


def with_values(tree: Tree, numbers: Mapping[str, np.ndarray]) -> Tree:
    """The same tree with other numbers; what a sparse matrix does not store stays zero."""

    def replaced(name: str, leaf: Any) -> Any:
        return leaf.with_data(numbers[name]) if isinstance(leaf, Sparse) else numbers[name]

    return _map(replaced, "", tree)


def _map(function: Any, name: str, tree: Any, *others: Any) -> Any:
    if tree is None:
        return None
    if isinstance(tree, np.ndarray | Sparse):
        return function(name, tree, *others)
    prefix = name + "." if name else ""
    if isinstance(tree, tuple):
        return tuple(_map(function, f"{prefix}{i}", *parts) for i, parts in enumerate(zip(tree, *others, strict=True)))
    if is_dataclass(tree) and not isinstance(tree, type):
        keys = [field.name for field in fields(tree)]
        parts = {key: [getattr(t, key) for t in (tree, *others)] for key in keys}
        return type(tree)(**{key: _map(function, prefix + key, *parts[key]) for key in keys})
    kind = type(tree).__name__
    raise TypeError(
        f"{name or 'the tree'} is a {kind}; allowed are arrays, sparse matrices, tuples, dataclasses and None"
    )
