"""How well each expert suits each token: ways to make the logits that a gate chooses by.

The plain router is `linear`, a dot product with one column per expert. Here are the others, and two things that are done
to the router's input only: shaking it, and computing in a wider float type than the model's.
"""

import numpy as np

from ..types import Array, Backward
from .linear import linear
from .pointwise import tanh
from .read_only import read_only


def unit_rows(x: Array, *, eps=1e-12) -> tuple[Array, Backward]:
    """Scale each row to length 1.

        y = x r,   r = (Σ x² + eps)^(−1/2)        dx = r (dy − y Σ dy ⊙ y)

    With eps under the root the gradient is exact, and a row of zeros stays one.

    x  (N, D)
    y  (N, D)
    """
    r = 1 / np.sqrt((x * x).sum(-1, keepdims=True) + eps)  # (N, 1)
    y = x * r

    def backward(dy):
        return (r * (dy - y * (dy * y).sum(-1, keepdims=True)),)  # dy less its part along y

    return read_only(y), backward


def cosine_scores(x: Array, router: Array, scale: Array, *, eps=1e-12) -> tuple[Array, Backward]:
    """The cosine of the angle between token and expert, times a learned scale: long tokens score like short ones.

        c_ne = x̂_n · ŵ_e,   x̂, ŵ: x_n and column e of the router at length 1 (see `unit_rows`)        z = scale c
        dscale = Σ dz ⊙ c,   dc = scale dz,   dx̂ = dc ŵᵀ,   dŵ = x̂ᵀ dc,   then through `unit_rows`

    x       (N, D)
    router  (D, E)
    scale   ()      the inverse of a temperature
    logits  (N, E)

    Source: Chi et al. 2022 (X-MoE), who first project x to fewer dimensions.
    """
    tokens, tokens_back = unit_rows(x, eps=eps)
    experts, experts_back = unit_rows(router.T, eps=eps)
    cosines = tokens @ experts.T
    logits = scale * cosines

    def backward(dlogits):
        dcosines = scale * dlogits
        (dx,) = tokens_back(dcosines @ experts)
        (drouter,) = experts_back(dcosines.T @ tokens)
        return dx, drouter.T, np.asarray((dlogits * cosines).sum())

    return logits, backward


def mlp_scores(x: Array, hidden: Array, out: Array) -> tuple[Array, Backward]:
    """A router with one hidden layer.

        z = tanh(x Hidden) Out        backward: through each of the three in turn

    x       (N, D)
    hidden  (D, F)
    out     (F, E)
    logits  (N, E)
    """
    h, hidden_back = linear(x, hidden)
    a, tanh_back = tanh(h)
    logits, out_back = linear(a, out)

    def backward(dlogits):  # read upwards
        da, dout = out_back(dlogits)
        (dh,) = tanh_back(da)
        dx, dhidden = hidden_back(dh)
        return dx, dhidden, dout

    return logits, backward


def jitter(x: Array, *, factors: Array) -> tuple[Array, Backward]:
    """Shake the router's input in training, so that nearly equal experts take turns.

        y = x ⊙ factors        dx = dy ⊙ factors

    For the router only: the experts get x as it was. In public code the shaken tensor has reached them, when x itself
    was replaced or changed in place.

    x        (N, D)
    factors  (N, D)  constants, drawn by the caller uniformly from [1 − ε, 1 + ε], or anything that broadcasts
    y        (N, D)

    Source: Fedus et al. 2021 (Switch), appendix C, with ε = 0.01 in public code.
    """
    constants = np.asarray(factors).astype(x.real.dtype, copy=False)
    y = x * constants

    def backward(dy):
        return (dy * constants,)

    return y, backward


def cast(x: Array, dtype) -> tuple[Array, Backward]:
    """In another float type: a router in float32 or float64 whatever the model's type.

        y = x        dx = dy, in the type of x

    A complex x, as in the complex step, stays complex.

    x  (...)
    y  (...)

    Source: Fedus et al. 2021 (Switch), §2.4 (selective precision).
    """
    y = x.astype(np.result_type(dtype, 1j) if np.iscomplexobj(x) else dtype)

    def backward(dy):
        return (dy.astype(x.real.dtype),)

    return y, backward
