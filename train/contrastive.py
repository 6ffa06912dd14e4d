"""Stage 1: the encoder alone, by dense contrastive matching between frames of procedural clips.

For every point visible in two frames, its feature in the first must single out its place among all
places of the second, at every stride: cross entropy over the whole map, the target shared by the
four nearest cells. Cheap, and the untrained matcher already follows points with the result.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

if not __package__:  # run as a script: the folder above holds both packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from cotracker_ros.model.realtime import PyramidEncoder, RealtimeConfig, sample_cells
from train.procedural import Clips, SceneConfig
from train.stream import ClipStream, StreamConfig, loader


def place_weights(xy: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The four cells around feature coordinates xy (..., 2) and their bilinear weights, (...,
    4) each.
    """
    limit = torch.tensor([width - 1, height - 1], device=xy.device)
    xy = torch.minimum(xy.clamp_min(0), limit.to(xy.dtype))
    low = torch.minimum(xy.floor(), (limit - 1).to(xy.dtype))
    part = xy - low
    low = low.long()
    index, weight = [], []
    for dy in (0, 1):
        for dx in (0, 1):
            index.append((low[..., 1] + dy) * width + low[..., 0] + dx)
            weight.append(
                (part[..., 0] if dx else 1 - part[..., 0])
                * (part[..., 1] if dy else 1 - part[..., 1])
            )
    return torch.stack(index, -1), torch.stack(weight, -1)


def matching_loss(
    features: list[Tensor], clips: Clips, strides: tuple[int, ...], scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross entropy of each point's place in every other frame, and the share placed within 1.5
    cells.

    features: per level (B * T, C, h, w); scale (levels,): inverse temperature.
    """
    batch, frames, points = clips.visible.shape
    pick = torch.arange(batch)[:, None], clips.query_frame
    start = clips.tracks.transpose(1, 2)[pick[0], torch.arange(points), pick[1]]
    weight = clips.visible.float()
    weight = weight.scatter(1, clips.query_frame[:, None], 0)  # not the query frame itself
    losses, hits = [], []
    for level, stride in enumerate(strides):
        height, width = features[level].shape[-2:]
        maps = features[level].view(batch, frames, -1, height, width)
        template = torch.stack(
            [sample_cells(maps[:, t], start / stride) for t in range(frames)], 2
        )
        template = template[pick[0], torch.arange(points), pick[1]]
        template = F.normalize(template, dim=-1)
        logits = torch.einsum('bnc,btcp->btnp', template, maps.flatten(3)) * scale[level]
        index, share = place_weights(clips.tracks / stride, height, width)
        log_p = logits.gather(-1, index) - logits.logsumexp(-1, keepdim=True)
        losses.append(-(weight * (share * log_p).sum(-1)).sum() / weight.sum().clamp_min(1))
        best = logits.detach().argmax(-1)
        miss = torch.stack([best % width, best // width], -1) - clips.tracks / stride
        hits.append((weight * (miss.norm(dim=-1) < 1.5)).sum() / weight.sum().clamp_min(1))
    return torch.stack(losses).sum(), torch.stack(hits)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--output', type=Path, required=True)
    parser.add_argument('--steps', type=int, default=6000)
    parser.add_argument('--clips', type=int, default=4)
    parser.add_argument('--points', type=int, default=160)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--lr', type=float, default=2e-3)
    parser.add_argument('--workers', type=int, default=1, help='processes that render')
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    config = RealtimeConfig()
    encoder = PyramidEncoder(config).to(memory_format=torch.channels_last)
    scale = nn.Parameter(torch.full((len(config.strides),), math.log(1 / 0.07)))
    optimiser = torch.optim.AdamW([*encoder.parameters(), scale], args.lr, weight_decay=0.02)
    start = 0
    if args.output.exists():
        saved = torch.load(args.output, weights_only=True)
        encoder.load_state_dict(saved['encoder'])
        scale.data.copy_(saved['scale'])
        optimiser.load_state_dict(saved['optimiser'])
        start = saved['step']
    stream = StreamConfig(clips=args.clips, points=args.points, pace=(0.3, 6.0), shuffle=True)
    batches = loader(ClipStream(SceneConfig(frames=4), stream, args.seed, start), args.workers)
    bar = tqdm(range(start, args.steps), initial=start, total=args.steps, mininterval=10)
    average = torch.zeros(4)
    for step in bar:
        rate = (
            args.lr
            * min(1, (step + 1) / 200)
            * (0.5 + 0.5 * math.cos(math.pi * step / args.steps))
            + 1e-6
        )
        for group in optimiser.param_groups:
            group['lr'] = rate
        clips = next(batches)
        image = (
            clips.video.flatten(0, 1)
            .movedim(-1, 1)
            .float()
            .contiguous(memory_format=torch.channels_last)
        )
        with torch.autocast('cpu', dtype=torch.bfloat16):
            features = encoder(image)
        loss, hits = matching_loss(features, clips, config.strides, scale.exp().clamp_max(40))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 2.0)
        optimiser.step()
        average = average.lerp(
            torch.cat([loss.detach()[None], hits]), 0.02 if step - start > 20 else 0.3
        )
        if step % 20 == 0:
            bar.set_postfix_str(
                'loss {:.3f}, placed {:.3f} {:.3f} {:.3f}'.format(*average.tolist())
            )
        if step % 200 == 199 or step == args.steps - 1:
            half = args.output.with_suffix('.part')
            torch.save(
                {
                    'encoder': encoder.state_dict(),
                    'scale': scale.data,
                    'optimiser': optimiser.state_dict(),
                    'step': step + 1,
                },
                half,
            )
            half.rename(args.output)


if __name__ == '__main__':
    main()
