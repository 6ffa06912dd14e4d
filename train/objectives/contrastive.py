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

if not __package__:  # run as a script: the root holds both packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from torch import nn
from tqdm import tqdm

from cotracker_ros.model import load_checkpoint
from cotracker_ros.model.config import FRESH
from cotracker_ros.model.realtime import PyramidEncoder, RealtimeConfig
from train.data.loader import ClipStream, StreamConfig, loader
from train.data.synthetic.procedural import SceneConfig
from train.data.synthetic.textures import read_photographs
from train.losses import matching_loss
from train.objectives.realtime import encode


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--output', type=Path, required=True)
    parser.add_argument('--steps', type=int, default=6000)
    parser.add_argument('--clips', type=int, default=4)
    parser.add_argument('--frames', type=int, default=4, help='in a group')
    parser.add_argument(
        '--size', type=int, nargs=2, default=(192, 256), help='height and width, px'
    )
    parser.add_argument('--points', type=int, default=160)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--lr', type=float, default=2e-3)
    parser.add_argument('--workers', type=int, default=1, help='processes that render')
    parser.add_argument('--start', default='', help='weights of a tracker whose encoder goes on')
    parser.add_argument('--textures', default='', help='folder of photographs for scenes to wear')
    parser.add_argument('--licence', default=FRESH.licence, help='that the photographs allow')
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    config = RealtimeConfig()
    encoder, origin = PyramidEncoder(config), FRESH
    if args.start:
        begun = load_checkpoint(args.start)
        encoder.load_state_dict(begun.encoder.state_dict())
        origin = begun.origin
    encoder = encoder.to(memory_format=torch.channels_last)
    scale = nn.Parameter(torch.full((len(config.strides),), math.log(1 / 0.07)))
    optimiser = torch.optim.AdamW([*encoder.parameters(), scale], args.lr, weight_decay=0.02)
    start, told = 0, f'matching on procedural video, {args.steps} steps, seed {args.seed}'
    origin = origin.trained_on(args.licence, told)
    if args.output.exists():
        saved = torch.load(args.output, weights_only=True)
        encoder.load_state_dict(saved['encoder'])
        scale.data.copy_(saved['scale'])
        optimiser.load_state_dict(saved['optimiser'])
        start = saved['step']
    stream = StreamConfig(clips=args.clips, points=args.points, pace=(0.3, 12.0), shuffle=True)
    source = ClipStream(
        SceneConfig(size=tuple(args.size), frames=args.frames, bodies=0.6, twins=0.15, jpeg=0.3),
        stream,
        args.seed,
        start,
        textures=read_photographs(args.textures),
    )
    batches = loader(source, args.workers)
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
        features = [f.flatten(0, 1) for f in encode(encoder, clips.video)]
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
                    'licence': origin.licence,
                    'provenance': origin.provenance,
                },
                half,
            )
            half.rename(args.output)


if __name__ == '__main__':
    main()
