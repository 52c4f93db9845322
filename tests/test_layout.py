"""The architecture: imports point one way, no framework comes in, and importing the package is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tinymoe

ROOT = Path(tinymoe.__file__).parent
FLOORS = [  # a file imports only from floors above its own
    {"errors", "sparse", "slopes", "metrics", "golden_compare"},
    {"tree", "ops"},
    {"models", "gradcheck", "optim", "data", "checkpoint", "dispatchers", "all_reduce", "conventions"},
    {"gate_cases", "balance_cases", "recurrent_cases", "settings", "sampling", "accounting", "long_text", "captioning"},
    {"cases", "folder", "sparsify", "sources"},
    {"check", "bench", "state", "plots", "museum", "golden"},
    {"team", "generate"},
    {"trainer", "evaluate", "recipes"},
    {"arguments", "progress", "search"},
    {"train", "study"},
]
OPS = [
    {"pointwise", "linear", "norm", "softmax", "positions", "shift", "attention", "routing"},
    {"sparse", "scores", "gates", "capacity", "balance", "recurrent", "likelihood", "cross"},
    {"experts", "distillation", "shared_gates"},
    {"moe", "soft"},
    {"__init__"},
]
FORBIDDEN = {"torch", "tensorflow", "jax", "keras", "autograd", "cupy", "numba", "mxnet", "flax", "tinygrad", "theano"}


def imports(file):
    """(names of modules of this package, names of others) that a file imports, at any depth."""
    own, others = set(), set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            others.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.level == 1:
            own |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return own, others


def check_order(files, floors):
    level = {name: i for i, names in enumerate(floors) for name in names}
    for name, found in files.items():
        for other in found & level.keys():
            assert level[other] < level[name], f"{name} imports {other}, which does not stand above it"


def test_imports_point_upwards_only():
    top = {f.stem: imports(f)[0] for f in ROOT.glob("*.py") if f.stem != "__init__"}
    assert set(top) | {"ops", "models", "data", "sparse", "museum", "recipes"} == set.union(*FLOORS)
    check_order(top, FLOORS)
    check_order({f.stem: imports(f)[0] for f in (ROOT / "ops").glob("*.py")}, OPS)


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT)))
def test_no_framework_is_imported(file):
    assert not imports(file)[1] & FORBIDDEN


def test_importing_the_package_and_its_operations_loads_numpy_and_nothing_heavy():
    code = "import tinymoe, tinymoe.ops, sys; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "numpy" in loaded
    assert not {"matplotlib", "scipy", "tqdm", "safetensors"} & set(loaded)
