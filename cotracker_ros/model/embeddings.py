"""How positions, times and motions enter the tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def sincos(position: Tensor, size: int) -> Tensor:
    """Embed positions (...) as size / 2 sines, then size / 2 cosines: (..., size).

    Frequencies fall geometrically from 1 to 1 / 10000.
    """
    half = size // 2
    omega = position.new_tensor([10000 ** (-i / half) for i in range(half)])
    angle = position[..., None] * omega
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def time_table(frames: int, stored: int, size: int) -> Tensor:
    """Embed `frames` times (frames, size), float64, from a table made for `stored` times.

    A clip of another length than the table gets the table resized linearly.
    """
    table = sincos(torch.arange(stored, dtype=torch.float64), size)
    if frames != stored:
        table = torch.nn.functional.interpolate(table.T[None], frames, mode='linear')[0].T
    return table


def position_table(xy: Tensor, extent: tuple[int, int], size: int) -> Tensor:
    """Sample the sine-cosine table of a feature map of `extent` (h, w) at xy (..., 2).

    The table is defined at pixels; between them it is bilinear, outside it is the border's. Half
    of it depends on x alone and half on y alone, so it is never built: two embeddings are mixed.
    """
    parts = []
    for axis, length in enumerate((extent[1], extent[0])):
        position = xy[..., axis].clamp(0, length - 1)
        low = position.floor()
        high = (low + 1).clamp(max=length - 1)
        low_part, high_part = sincos(low, size // 2), sincos(high, size // 2)
        parts.append(low_part + (position - low)[..., None] * (high_part - low_part))
    return torch.cat(parts, dim=-1)


def displacement_encoding(xy: Tensor) -> Tensor:
    """Encode the displacement of tracks (..., S, 2) from their first frame: (..., S, 130).

    32 frequencies up to 969 rad per feature pixel, sine and cosine interleaved, rounded to
    float32 as in the published networks (it matters in a float64 model only).
    """
    displacement = xy - xy[..., :1, :]
    omega = xy.new_tensor([2 * i * 1000 / 64 for i in range(32)])
    angle = displacement[..., None] * omega
    waves = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-3)
    return torch.cat([displacement, waves.float().to(xy.dtype)], dim=-1)


def motion_encoding(xy: Tensor, extent: tuple[int, int]) -> Tensor:
    """Encode the motion of tracks (..., S, 2) to the next and from the last frame: (..., S, 84).

    Displacements are in units of the feature map's `extent` (h, w), at ten octaves.
    """
    step = xy[..., 1:, :] - xy[..., :-1, :]
    still = torch.zeros_like(xy[..., :1, :])
    motion = torch.cat(
        [torch.cat([-step, still], dim=-2), torch.cat([still, step], dim=-2)], dim=-1
    ) / xy.new_tensor([extent[1], extent[0]] * 2)
    angle = motion[..., None, :] * motion.new_tensor([2.0**i for i in range(10)])[:, None]
    angle = angle.flatten(-2)
    return torch.cat([motion, angle.sin(), angle.cos()], dim=-1)


KEYPOINT_SCALE = 0.1  # standard deviation of fresh keypoint embeddings


class KeypointEmbedding(nn.Module):
    """What is added to the tokens of points that are a body's keypoints, by their number."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(KEYPOINT_SCALE * torch.randn(count, 1, width))

    def forward(self, keypoint: Tensor) -> Tensor:
        """Embed numbers (..., N) as (..., N, 1, width), 0 for plain points, whose number is -1.

        A number beyond the table counts as its last.
        """
        named = (keypoint >= 0)[..., None, None]
        rows = self.table[keypoint.long().clamp(0, len(self.table) - 1)]
        return rows * named.to(rows.dtype)


def check_keypoints(keypoint: Tensor | None, points: int, table: KeypointEmbedding | None) -> None:
    """Raise ValueError for numbers (points,) of keypoints that a network cannot take."""
    if keypoint is None:
        return
    if table is None:
        raise ValueError('this network has no keypoint embedding; leave the keypoints out')
    if tuple(keypoint.shape) != (points,) or keypoint.is_floating_point():
        raise ValueError(
            f'keypoints must be {points} whole numbers; got {tuple(keypoint.shape)} of'
            f' {keypoint.dtype}'
        )
    count = len(table.table)
    wrong = keypoint[(keypoint < -1) | (keypoint >= count)]
    if len(wrong):
        raise ValueError(
            f'{int(wrong[0])} is no keypoint of this network: they go from 0 to {count - 1},'
            ' and -1 is a plain point'
        )
