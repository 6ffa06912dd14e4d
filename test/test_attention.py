"""Attention against torch's own module, with masks and cached keys."""

import pytest

torch = pytest.importorskip('torch')

from cotracker_ros.model.attention import Attention, CausalAttention, attend  # noqa: E402

WIDTH, HEADS = 12, 3


def test_attention_is_that_of_torch_where_masks_allow_it():
    torch.manual_seed(0)
    ours = Attention(WIDTH, HEADS)
    theirs = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    theirs.load_state_dict(
        {
            'in_proj_weight': torch.cat([ours.q.weight, ours.kv.weight]),
            'in_proj_bias': torch.cat([ours.q.bias, ours.kv.bias]),
            'out_proj.weight': ours.out.weight,
            'out_proj.bias': ours.out.bias,
        }
    )
    x, context = torch.randn(2, 5, WIDTH), torch.randn(2, 7, WIDTH)
    mask = torch.rand(2, 5, 7) < 0.5
    mask[..., 0] = True
    hidden = ~mask.repeat_interleave(HEADS, 0)
    want = theirs(x, context, context, attn_mask=hidden, need_weights=False)[0]
    torch.testing.assert_close(ours(x, context, mask), want)


def test_a_row_that_may_look_at_nothing_takes_the_mean_of_all_values():
    q, kv = torch.randn(4, WIDTH), torch.randn(6, 2 * WIDTH)
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[2] = False
    got = attend(q, kv, HEADS, mask, bias=torch.randn(HEADS, 4, 6))
    torch.testing.assert_close(got[2], kv[:, WIDTH:].mean(0))
    assert not torch.allclose(got[1], kv[:, WIDTH:].mean(0))


def test_cached_keys_give_what_all_frames_at_once_give():
    torch.manual_seed(0)
    window, frames = 3, 5
    layer = CausalAttention(WIDTH, HEADS, window)
    torch.nn.init.normal_(layer.lag_bias)
    x = torch.randn(2, frames, WIDTH)
    empty = torch.zeros(2, window - 1, 2 * WIDTH)
    lag = torch.arange(frames)[:, None] - torch.arange(1 - window, frames)
    seen = (lag >= 0) & (lag < window) & (torch.arange(1 - window, frames) >= 0)
    whole, _ = layer(x, empty, seen[None], lag)
    past = empty
    for t in range(frames):
        part = slice(t, t + window)
        update, past = layer(
            x[:, t : t + 1], past, seen[None, t : t + 1, part], lag[t, part][None]
        )
        torch.testing.assert_close(update[:, 0], whole[:, t])
