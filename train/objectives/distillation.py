"""A slim encoder learns the features of the one that it is to stand for.

It begins with what can be computed: filters that give the main directions of what every
convolution of the other answers to pictures, and what these leave out of it. Then steps of
gradient bring its features nearer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from cotracker_ros.model.checkpoint import load_checkpoint
from cotracker_ros.model.pyramid import LowRankBlock, PyramidEncoder, ResidualBlock, SlimEncoder
from train.data.batch import Clips
from train.objectives.base import Objective, learn
from train.objectives.realtime import encode, folded

if TYPE_CHECKING:
    from train.config import TrainConfig


class DistillationObjective(Objective):
    """Trains `model.encoder` to give what the encoder of the weights that the run began with
    gives; the rest is left as it began.
    """

    def __init__(self, model: nn.Module, config: TrainConfig):
        super().__init__(model, config)
        if not config.start:
            raise ValueError('distillation is from the encoder of `start`, which is not set')
        teacher = load_checkpoint(config.start, model.image_size).encoder
        if not isinstance(teacher, PyramidEncoder) or not isinstance(model.encoder, SlimEncoder):
            raise ValueError('distillation is from a `pyramid` to a `slim` or `tucker` encoder')
        model.requires_grad_(False)
        learn(model.encoder)
        model.encoder.to(memory_format=torch.channels_last)
        # In a tuple, so that it is no submodule with weights of its own; it moves when it is used.
        self.teacher = (folded(teacher),)
        self.strides = teacher.strides

    def groups(self) -> list[dict[str, Any]]:
        """The encoder."""
        return [{'params': list(self.model.encoder.parameters()), 'peak': self.config.lr}]

    def forward(self, clips: Clips, step: int, first: int) -> dict[str, Tensor]:
        """The loss, and by stride how far the cosine of the two features is from 1."""
        teacher, scale = self.teacher[0].to(clips.video.device), self.model.config.image_scale
        if step == 0:
            begin_like(self.model.encoder, teacher, clips.video.flatten(0, 1).movedim(-1, 1))
            if dist.is_initialized():  # every process has pictures of its own
                for parameter in self.model.encoder.parameters():
                    dist.broadcast(parameter.data, 0)
        with torch.no_grad():
            taught = encode(teacher, clips.video, scale)
        given = encode(self.model.encoder, clips.video, scale)
        off = [1 - (a * b).sum(1).mean() for a, b in zip(given, taught, strict=True)]
        named = {f'off at stride {s}': x.detach() for s, x in zip(self.strides, off, strict=True)}
        return {'total': torch.stack(off).sum(), **named}


@torch.no_grad()
def begin_like(encoder: SlimEncoder, teacher: PyramidEncoder, image: Tensor) -> None:
    """Fill a slim encoder with what comes nearest to its teacher, as `folded` gives it,
    convolution by convolution, on pictures (B, 3, H, W) in 0..255.
    """
    stem = teacher.stem[0]
    x = F.relu(stem(image / 127.5 - 1))
    kept, back, offset = spanning_channels(x, encoder.stem[0].out_channels)
    encoder.stem[0].weight.copy_(stem.weight[kept])
    encoder.stem[0].bias.copy_(stem.bias[kept])
    given, maps = x[:, kept], []
    for mine, theirs in zip(encoder.stages, teacher.stages, strict=True):
        for block, example in zip(mine, theirs, strict=True):
            given = x = _begin_block(block, example, x, given, back, offset)
            back, offset = torch.eye(x.shape[1]).to(x), torch.zeros(x.shape[1]).to(x)
        maps.append(x)
    top = teacher.lateral[-1](maps[-1])
    encoder.lateral[-1].load_state_dict(teacher.lateral[-1].state_dict())
    coarse = torch.eye(top.shape[1]).to(top)  # directions kept of the coarser sum
    for level in reversed(range(len(teacher.smooth))):
        lateral, smooth = teacher.lateral[level], teacher.smooth[level]
        size = maps[level].shape[-2:]
        up = F.interpolate(top, size=size, mode='bilinear', align_corners=False)
        top = lateral(maps[level]) + up
        mean, main = main_directions(top, encoder.smooth[level].in_channels)
        # A sum s is taken as mean + main (main^T (s - mean)); the mean goes into the last bias.
        encoder.lateral[level].weight.copy_(_mixed(main.T, lateral.weight))
        encoder.lateral[level].bias.copy_(main.T @ lateral.bias)
        encoder.down[level].weight.copy_((main.T @ coarse)[..., None, None])
        rest = mean - main @ (main.T @ mean)
        encoder.smooth[level].weight.copy_(_after(smooth.weight, main))
        encoder.smooth[level].bias.copy_(smooth.bias + smooth.weight.sum((2, 3)) @ rest)
        coarse = main


def _begin_block(
    block: LowRankBlock,
    example: ResidualBlock,
    x: Tensor,
    given: Tensor,
    back: Tensor,
    offset: Tensor,
) -> Tensor:
    """Fill a block, whose inputs stand for the example's, x, as back given + offset; returns what
    the example gives.
    """
    first = fuse_conv_bn_eval(example.conv1, example.norm1)
    second = fuse_conv_bn_eval(example.conv2, example.norm2)
    y = first(x)
    begin_low_rank(block.conv1, given, y, first.weight, first.bias, back, offset)
    inner, unity = F.relu(y), torch.eye(y.shape[1]).to(y)
    z, zero = second(inner), torch.zeros_like(unity[0])
    begin_low_rank(block.conv2, inner, z, second.weight, second.bias, unity, zero)
    if isinstance(example.skip, nn.Conv2d):
        weight = example.skip.weight
        block.skip.weight.copy_(_after(weight, back))
        block.skip.bias.copy_(example.skip.bias + weight.sum((2, 3)) @ offset)
    return F.relu(example.skip(x) + z)


def begin_low_rank(
    parts: nn.Sequential,
    given: Tensor,
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    back: Tensor,
    offset: Tensor,
) -> None:
    """Fill the convolutions that stand for one of this weight and bias, whose outputs are y and
    whose inputs are back given + offset: the last but one gives the main directions of y, the last
    y from those, and the first of three the mixtures of what is given that matter for them.
    """
    *first, few, last = parts
    mean, main = main_directions(y, few.out_channels)
    bias = bias + weight.sum((2, 3)) @ offset
    kernel = _mixed(main.T, _after(weight, back))
    for mixing in first:
        mix, kernel = main_inputs(given, kernel, mixing.out_channels)
        mixing.weight.copy_(mix[..., None, None])
    few.weight.copy_(kernel)
    last.weight.copy_(main[..., None, None])
    last.bias.copy_(mean + main @ (main.T @ (bias - mean)))


def main_directions(y: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The mean of maps (B, C, h, w) and their main directions: (C,) and orthonormal (C, count)."""
    cells = y.transpose(0, 1).flatten(1)
    mean = cells.mean(1)
    _, vectors = torch.linalg.eigh((cells - mean[:, None]) @ (cells - mean[:, None]).T)
    return mean, vectors[:, -count:]


def main_inputs(x: Tensor, weight: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The mixtures (count, i) of inputs x (B, i, h, w) from which a convolution of `weight` (o, i,
    h, w) is given best, by the sum of squares over its outputs and taps, and its weight for them.
    """
    cells = x.transpose(0, 1).flatten(1)
    values, vectors = torch.linalg.eigh(cells @ cells.T / cells.shape[1])
    scale = values.clamp(min=1e-6 * values[-1]).sqrt()
    taps = weight.movedim(1, -1).flatten(0, -2) @ vectors * scale  # for inputs of covariance 1
    _, main = torch.linalg.eigh(taps.T @ taps)
    main = main[:, -count:]
    return main.T @ (vectors / scale).T, _after(weight, vectors * scale @ main)


def spanning_channels(y: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which `count` channels of maps (B, C, h, w) give the others best, one chosen after the
    other: their numbers (count,), and all as a linear map (C, count) of them plus (C,).
    """
    cells = y.transpose(0, 1).flatten(1)
    mean = cells.mean(1)
    covariance = (cells - mean[:, None]) @ (cells - mean[:, None]).T / cells.shape[1]
    left, kept = covariance.clone(), []
    for _ in range(count):
        gain = (left**2).sum(0) / left.diagonal().clamp(min=1e-12)
        gain[kept] = -1
        best = int(gain.argmax())
        kept.append(best)
        left = left - left[:, [best]] @ left[[best]] / left[best, best].clamp(min=1e-12)
    chosen = torch.tensor(sorted(kept), device=y.device)
    back = torch.linalg.lstsq(covariance[chosen][:, chosen], covariance[chosen]).solution.T
    back[chosen] = torch.eye(count).to(back)
    return chosen, back, mean - back @ mean[chosen]


def _mixed(mix: Tensor, weight: Tensor) -> Tensor:
    """Weights (o, i, h, w) of a convolution whose outputs are then mixed by (m, o)."""
    return torch.einsum('mo,oihw->mihw', mix, weight)


def _after(weight: Tensor, mix: Tensor) -> Tensor:
    """Weights (o, i, h, w) of a convolution whose inputs are mixed by (i, m) before."""
    return torch.einsum('oihw,im->omhw', weight, mix)
