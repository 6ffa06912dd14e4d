"""Every network by name: how it is built, and how it runs on a stream.

What else must be known of a network it states itself, in `facts`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from cotracker_ros.model.config import VARIANTS
from cotracker_ros.model.cotracker import CoTracker
from cotracker_ros.model.realtime import RealtimeConfig, build_realtime
from cotracker_ros.model.realtime_step import RealtimeStep
from cotracker_ros.model.step import Step, WindowedStep
from cotracker_ros.skeleton import KEYPOINTS


class Entry(NamedTuple):
    """A network: its usual configuration, `build(**changes of it)` with fresh weights, and
    `step(network, iterations)` for a stream.
    """

    config: Any
    build: Callable[..., nn.Module]
    step: Callable[[Any, int], Step]


def _cotracker(name: str, **changes: Any) -> CoTracker:
    return CoTracker(replace(VARIANTS[name], **changes))


NETWORKS = {
    **{n: Entry(config, partial(_cotracker, n), WindowedStep) for n, config in VARIANTS.items()},
    'realtime': Entry(RealtimeConfig(), build_realtime, RealtimeStep),
}


def build_model(name: str, image_size: Sequence[int] | None = None, **changes: Any) -> nn.Module:
    """Build a network with fresh weights.

    `name` is one of NETWORKS; `image_size` is (H, W) in pixels, by default what the network was
    made for; `changes` replace further fields of the configuration, as window=12; a list stands
    for a tuple. Raises ValueError for an unknown name, TypeError for an unknown field.
    """
    if name not in NETWORKS:
        raise ValueError(f'unknown model {name!r}; there are {", ".join(NETWORKS)}')
    if image_size is not None:
        changes['image_size'] = tuple(image_size)
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
    return NETWORKS[name].build(**values)


def build_step(model: nn.Module, iterations: int | None = None) -> Step:
    """Make the streaming step of a network, with its own number of iterations unless given.

    Raises ValueError for a network that cannot be streamed, or whose embedding is of fewer
    keypoints than a stream names: it would take those beyond for its last.
    """
    facts = model.facts
    iterations = facts.iterations if iterations is None else iterations
    if iterations < 1:
        raise ValueError(f'iterations is {iterations}, it must be at least 1')
    if facts.not_streamable:
        raise ValueError(f'{facts.name} cannot be streamed: {facts.not_streamable}')
    if 0 < model.config.keypoints < len(KEYPOINTS):
        raise ValueError(
            f'{facts.name} has an embedding of {model.config.keypoints} keypoints, but streams '
            f'name {len(KEYPOINTS)}'
        )
    return NETWORKS[facts.name].step(model, iterations)


def shape_of(model: nn.Module) -> dict[str, Any]:
    """The changes that `build_model` needs to build this network, but for its image size."""
    usual = NETWORKS[model.facts.name].config
    values = {f.name: getattr(model.config, f.name) for f in fields(model.config)}
    return {
        name: value
        for name, value in values.items()
        if name != 'image_size' and value != getattr(usual, name)
    }
