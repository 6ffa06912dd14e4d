"""Multi-head attention (Vaswani et al., Attention Is All You Need, 2017, section 3.2), and its
forms in the networks.

A mask is boolean and true where a query may look at a key. Rows that may look at nothing attend
uniformly: never NaN. Shapes: A any leading axes, N queries, M keys, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def attend(
    q: Tensor, kv: Tensor, heads: int, mask: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """Let queries (A, N, D) look at keys and values (A, M, 2 D), the channels divided among the
    heads: (A, N, D). `mask` (A, N, M) or 1s of these; `bias` (heads, N, M), which needs a mask, is
    added to the scores.
    """
    q, k, v = (
        part.unflatten(-1, (heads, -1)).transpose(-2, -3) for part in (q, *kv.chunk(2, dim=-1))
    )
    # Written out: torch's own is exported for a single leading axis only.
    score = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        # The lowest finite number swallows every score, so a fully hidden row is uniform.
        added = q.new_zeros(()) if bias is None else bias
        score = score + torch.where(mask.unsqueeze(-3), added, torch.finfo(q.dtype).min)
    y = score.softmax(-1) @ v
    return y.transpose(-2, -3).flatten(-2)


class Attention(nn.Module):
    """Attention of x on a context."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend: x (A, N, D), context (A, M, D), mask as `attend`: (A, N, D)."""
        return self.out(attend(self.q(x), self.kv(context), self.heads, mask))


class CrossAttention(nn.Module):
    """Attention of x on a context, each with a learned norm before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm_context = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q, self.to_kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend: x (A, N, D), context (A, M, D), mask as `attend`: (A, N, D)."""
        q, kv = self.to_q(self.norm(x)), self.to_kv(self.norm_context(context))
        return self.to_out(attend(q, kv, self.heads, mask))


class CausalAttention(nn.Module):
    """Attention of a point's token to its own last `window` frames, with a learned norm before it
    and a learned bias per head and lag. Keys and values of past frames are cached.
    """

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)
        self.lag_bias = nn.Parameter(torch.zeros(heads, window))

    def forward(self, x: Tensor, past: Tensor, mask: Tensor, lag: Tensor) -> tuple[Tensor, Tensor]:
        """Attend: x (A, F, D), past keys and values (A, window - 1, 2 D), mask (A, F, window - 1
        + F), lag (F, window - 1 + F) in frames. Gives the update (A, F, D) and the keys and values
        of the newest window - 1 frames.
        """
        q, kv = self.to_qkv(self.norm(x)).split([x.shape[-1], 2 * x.shape[-1]], dim=-1)
        kv = torch.cat([past, kv], dim=-2)
        bias = self.lag_bias[:, lag.clamp(0, self.window - 1)]
        update = self.to_out(attend(q, kv, self.heads, mask, bias))
        return update, kv[..., kv.shape[-2] - self.window + 1 :, :]
