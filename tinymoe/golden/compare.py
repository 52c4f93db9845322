"""Compare a kernel with this pack: put yours in the place of `kernel`, then run `python compare.py [CASE ...]`.

The error of an array is its largest difference over the largest expected value; in float64 allow 1e-12. All given arrays
are bfloat16 numbers, so that any type starts from the same: allow 1e-5 in float32, and 3e-2 in bfloat16, which has 8 bits
and is rounded a few times in a row. Where `indices` differ, look at the case's margin in manifest.json: scores that are
off by half of it may choose otherwise, and everything behind the choice differs.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

TOLERANCE = 1e-12
ACTIVATIONS = {
    "silu": lambda u: u / (1 + np.exp(-u)),
    "relu": lambda u: np.maximum(u, 0),
    "gelu_tanh": lambda u: u / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3))),
}


def kernel(case):
    """Any of the expected arrays, by name. As shipped: y alone, token by token, from the routing that the case states."""
    y, activation = np.zeros(case["x"].shape), ACTIVATIONS[case["activation"]]
    for n, j in np.argwhere(case["kept"]):
        x, e = case["x"][n], case["indices"][n, j]
        u = x @ case["up"][e]
        h = activation(x @ case["gate"][e]) * u if case["gated"] else activation(u)
        y[n] += case["weights"][n, j] * (h @ case["down"][e])
    if case["shared_expert"]:
        y += activation(case["x"] @ case["shared_gate"]) * (case["x"] @ case["shared_up"]) @ case["shared_down"]
    return {"y": y}


def main(names):
    folder, errors = Path(__file__).parent, []
    cases = json.loads((folder / "manifest.json").read_text("utf-8"))["cases"]
    if unknown := [name for name in names if name not in cases]:
        sys.exit(f"there is no case {unknown[0]}; there are {', '.join(cases)}")
    for name in names or cases:
        file = folder / cases[name]["file"]
        if not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() != cases[name]["sha256"]:
            sys.exit(f"{file} is missing or damaged; write the pack once more")
        with np.load(file) as arrays:
            expected, given = dict(arrays), dict(arrays)  # read twice, for a kernel may write to what it gets
        for key, got in kernel(given | cases[name]["convention"]).items():
            got, right = np.asarray(got, float), expected[key].astype(float)
            same = got.shape == right.shape
            errors.append(np.abs(got - right).max(initial=0) / (np.abs(right).max(initial=0) or 1) if same else np.inf)
            print(f"{name:<25} {key:<17} {errors[-1]:.1e}{'' if errors[-1] <= TOLERANCE else '  WRONG'}")
    wrong = sum(not error <= TOLERANCE for error in errors)  # not >, for NaN is wrong too
    print(f"{len(errors)} arrays compared, {wrong} wrong")
    return 1 if wrong or not errors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
