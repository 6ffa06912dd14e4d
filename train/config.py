"""The settings of a run, read from YAML: unknown keys and values of another kind are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any

from train.data.batch import BatchConfig
from train.data.synthetic.photo_scenes import PhotoSceneConfig
from train.data.synthetic.procedural import SceneConfig
from train.losses import LossConfig
from train.objectives.contrastive import ContrastiveRecipe
from train.objectives.realtime import RealtimeRecipe
from train.objectives.windowed import WindowedRecipe

IMAGENET = 'imagenet'  # as encoder_weights: those that the feature network itself can find


@dataclass(frozen=True)
class TrainConfig:
    """A run; the groups are those of the files named."""

    network: str = 'realtime'  # or cotracker1, cotracker2, cotracker3_online, cotracker3_offline
    shape: dict[str, Any] = field(default_factory=dict)  # what differs from its own
    encoder: str = ''  # feature network by its name in cotracker_ros.model; else the network's own
    # contrastive: its encoder alone. distillation: its encoder learns what that of `start` gives.
    # realtime, windowed: the whole network, which learns by one of them by default.
    objective: str = ''
    size: tuple[int, ...] = ()  # (H, W) px of the model; by default that of the scene
    # weights to go on from; an encoder that is not of their kind begins fresh
    start: str = ''
    # for the encoder to begin with: the file of a contrastive stage, or imagenet
    encoder_weights: str = ''
    # where batches come from (train/data/sources.py), and the share of each
    sources: dict[str, float] = field(default_factory=lambda: {'procedural': 1.0})
    kubric: str = ''  # folder of the source kubric
    labels: str = ''  # folder or URL of the source pseudo_labels
    posetrack: str = ''  # folder of the source posetrack
    # JSON of where its people begin (readers/posetrack.py); else in any frame that shows them
    posetrack_starts: str = ''
    # Which clips' points have numbers where the network has an embedding of keypoints: those of
    # pose clips, or all: points of other clips then have numbers by their place, of nobody.
    embedding: str = 'pose'
    licence: str = 'Apache-2.0'  # of weights trained on these data, as far as the data allow
    textures: str = ''  # folder of photographs that scenes are textured with
    videos: str = ''  # folder of free videos that the source photo takes cut-outs from
    # Whether what turns a token into visibility and confidence stays as it began, as where labels
    # say little of them (CoTracker3, section 5).
    freeze_visibility: bool = False
    steps: int = 4000
    seed: int = 1
    lr: float = 5e-4
    encoder_rate: float = 1.0  # learning rate of the encoder against the rest's
    warmup: int = 200  # steps
    weight_decay: float = 0.01
    clip: float = 1.0  # largest gradient norm, of the encoder and of the rest
    ema: float = 0.998
    workers: int = 1  # processes that render or read
    save: int = 200  # steps between checkpoints
    evaluate: int = 1000  # steps between evaluations; 0: none
    evaluated: int = 4  # clips of an evaluation
    scene: SceneConfig = SceneConfig(frames=20)  # noqa: RUF009 (frozen)
    photo: PhotoSceneConfig = PhotoSceneConfig()  # noqa: RUF009 (frozen)
    batch: BatchConfig = BatchConfig()  # noqa: RUF009 (frozen)
    loss: LossConfig = LossConfig()  # noqa: RUF009 (frozen)
    contrastive: ContrastiveRecipe = ContrastiveRecipe()  # noqa: RUF009 (frozen)
    realtime: RealtimeRecipe = RealtimeRecipe()  # noqa: RUF009 (frozen)
    windowed: WindowedRecipe = WindowedRecipe()  # noqa: RUF009 (frozen)


def read_config(values: Mapping[str, Any], kind: type = TrainConfig, where: str = '') -> Any:
    """A config from nested mappings. Raises ValueError naming a key that doesn't exist or whose
    value is of another kind.
    """
    defaults = kind()
    known = {}
    value: Any
    for key, value in values.items():
        if key not in vars(defaults):
            raise ValueError(f'unknown key {where}{key}; there are: {", ".join(vars(defaults))}')
        default: Any = getattr(defaults, key)
        expected: Any = Mapping if is_dataclass(default) else type(default)
        if isinstance(default, float) and isinstance(value, (int, str)):
            expected = (float, int, str)  # YAML reads 1e-4 as a string
        if isinstance(default, tuple):
            expected = list
        if not isinstance(value, expected) or isinstance(value, bool) != isinstance(default, bool):
            raise ValueError(f'{where}{key} is {value!r}; it must be like {default!r}')
        if is_dataclass(default):
            known[key] = read_config(values[key], type(default), f'{where}{key}.')
            continue
        try:
            known[key] = type(default)(values[key])
        except ValueError as error:
            raise ValueError(f'{where}{key} is {value!r}: {error}') from error
    return kind(**known)
