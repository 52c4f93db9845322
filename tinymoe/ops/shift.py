"""A look at the token before, a cheap way to mix along the text."""

from ..types import Array, Backward


def token_shift(x: Array, mix: Array) -> tuple[Array, Backward]:
    """Move every token towards the one before it, by a learned share per channel.

        y_bt = x_bt + mix ⊙ (x_b,t−1 − x_bt),   x_b,−1 = 0
        dx_bt = (1 − mix) ⊙ dy_bt + mix ⊙ dy_b,t+1        dmix = Σ_bt dy_bt ⊙ (x_b,t−1 − x_bt)

    Attention can look back too, but must first learn where; what was written just now nearly always matters.

    x    (B, T, D)
    mix  (D,)
    y    (B, T, D)

    Source: Peng et al. 2023 (RWKV), §3.1.1, with 1 − μ for `mix`.
    """
    back = -x  # (B, T, D), the previous token less this one
    back[:, 1:] += x[:, :-1]
    y = x + mix * back

    def backward(dy):
        dback = dy * mix
        dx = dy - dback
        dx[:, :-1] += dback[:, 1:]
        return dx, (dy * back).sum((0, 1))

    return y, backward
