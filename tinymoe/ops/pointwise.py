"""Operations on single numbers, applied to every element of an array.

Each returns `y, backward`; `backward(dy)` multiplies `dy` by the derivative that stands in the docstring.
`(...)` is any shape.
"""

import math

import numpy as np

from ..types import Array, Backward
from .read_only import read_only

_erf = np.frompyfunc(math.erf, 1, 1)  # NumPy has no erf; the standard library's is exact to the last bit or two


def relu(x: Array) -> tuple[Array, Backward]:
    """Rectified linear unit.

        y = max(0, x)        dy/dx = 1 if x > 0 else 0

    x  (...)
    y  (...)

    Source: 《大语言模型原理基础与前沿：通过稀疏MoE扩展视觉语言模型》 §4.2; Nair & Hinton 2010.
    """
    y = np.maximum(x, 0)

    def backward(dy):
        return (dy * (x.real > 0),)

    return y, backward


def sigmoid(x: Array) -> tuple[Array, Backward]:
    """Logistic sigmoid; no overflow at either end.

        y = 1 / (1 + exp(−x))        dy/dx = y (1 − y)

    x  (...)
    y  (...)
    """
    y = _sigmoid(x)

    def backward(dy):
        return (dy * y * (1 - y),)

    return read_only(y), backward


def tanh(x: Array) -> tuple[Array, Backward]:
    """Hyperbolic tangent.

        y = tanh(x)        dy/dx = 1 − y²

    x  (...)
    y  (...)
    """
    y = np.tanh(x)

    def backward(dy):
        return (dy * (1 - y * y),)

    return read_only(y), backward


def softplus(x: Array) -> tuple[Array, Backward]:
    """A smooth ReLU, written so that neither end overflows or loses digits.

        y = ln(1 + exp(x)) = max(0, x) + ln(1 + exp(−|x|))        dy/dx = sigmoid(x)

    x  (...)
    y  (...)
    """
    y = np.maximum(x, 0) + np.log1p(np.exp(np.where(x.real > 0, -x, x)))

    def backward(dy):
        return (dy * _sigmoid(x),)

    return y, backward


def silu(x: Array) -> tuple[Array, Backward]:
    """Sigmoid-weighted linear unit, also called swish.

        y = x s,   s = sigmoid(x)        dy/dx = s + y (1 − s)

    Where exp(−x) overflows, down to x = −∞, y is −0 and dy/dx is 0.

    x  (...)
    y  (...)

    Source: Elfwing et al. 2017, eq. 5; Ramachandran et al. 2017.
    """
    s = _sigmoid(x)
    y = np.asanyarray(x * s)
    limit = -_exp_limit(x)
    if np.fmin.reduce(x.real, axis=None, initial=0) < limit:  # s is small there, not 0, and x can bring it back
        far = x.real < limit
        s[far], y[far] = 0, -0.0

    def backward(dy):
        slope = np.asanyarray(1 - s)  # one array, changed in place: in a SwiGLU expert it is large
        slope *= y
        slope += s
        return (np.multiply(dy, slope, out=slope),)

    return read_only(y), backward


def gelu(x: Array) -> tuple[Array, Backward]:
    """Gaussian error linear unit, in its tanh form.

        y = ½ x (1 + t),   t = tanh(u),   u = √(2/π) (x + 0.044715 x³)
        dy/dx = ½ (1 + t) + ½ x (1 − t²) √(2/π) (1 + 3·0.044715 x²)

    x  (...)
    y  (...)

    Source: Hendrycks & Gimpel 2016, §2.
    """
    c = math.sqrt(2 / math.pi)
    t = np.tanh(c * (x + 0.044715 * x * x * x))
    y = 0.5 * x * (1 + t)

    def backward(dy):
        du_dx = c * (1 + 3 * 0.044715 * x * x)
        return (dy * 0.5 * (1 + t + x * (1 - t * t) * du_dx),)

    return y, backward


def gelu_exact(x: Array) -> tuple[Array, Backward]:
    """Gaussian error linear unit, in its defining form (over a hundred times slower than `gelu` here).

        y = x Φ(x),   Φ(x) = ½ (1 + erf(x/√2))        dy/dx = Φ(x) + x φ(x),   φ(x) = exp(−x²/2)/√(2π)

    x  (...)  real
    y  (...)

    Source: Hendrycks & Gimpel 2016, §2.
    """
    cdf = (0.5 + 0.5 * np.asarray(_erf(x / math.sqrt(2)), dtype=float)).astype(x.dtype)
    y = x * cdf

    def backward(dy):
        density = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
        return (dy * (cdf + x * density),)

    return y, backward


def dropout(x: Array, keep: Array, rate) -> tuple[Array, Backward]:
    """Set the elements outside `keep` to zero and scale the rest so that the expectation stays.

        y = x ⊙ keep / (1 − rate)        dy/dx = keep / (1 − rate)

    x     (...)
    keep  (...)  bool, drawn by the caller: `rng.random(x.shape) >= rate`
    rate         the probability with which `keep` is False, in [0, 1)
    y     (...)

    Source: Srivastava et al. 2014, with the scale moved to training time.
    """
    scale = 1 / (1 - rate)
    y = x * keep * scale

    def backward(dy):
        return (dy * keep * scale,)

    return y, backward


def _sigmoid(x):
    y = np.asanyarray(np.minimum(-x, _exp_limit(x)))  # sigmoid is 0 to any purpose long before
    np.exp(y, out=y)
    y += 1
    return np.divide(1, y, out=y)


def _exp_limit(x):
    """A number beyond which exp overflows in the type of x, or nearly."""
    return 0.99 * math.log(np.finfo(x.dtype).max)
