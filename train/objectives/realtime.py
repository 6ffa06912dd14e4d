"""How the real-time tracker learns from a batch of clips.

A batch is used twice: first the tracker runs through the clips frame by frame without gradient, as
it will on a robot, and what every frame's search started from is kept; then all frames are refined
again in parallel from there, with gradient. So the model learns from its own errors at the cost of
one pass. The encoder learns with it through a few frames of every clip: they are encoded once
more, with gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval
from tqdm import tqdm

from cotracker_ros.model.realtime import (
    Estimate,
    Masks,
    Motion,
    Points,
    RealtimeTracker,
    Refined,
)
from train.data.batch import Clips
from train.losses import LossConfig, matching_loss, tracking_loss
from train.objectives.alignment import fit_cells
from train.objectives.base import Objective, learn

if TYPE_CHECKING:
    from train.config import TrainConfig

MATCHING_SHARPNESS = 20.0  # inverse temperature of the matching loss
LOST = 10.0  # px, how far off a point is that redetection should bring back
LOST_COUNTS = 0.4  # of a frame in which a point is in sight but lost, for what is shown of it
BACK_WITHIN = 4.0  # px of the truth, within which it may put a point
COUNTED_FRAMES = 12  # in which a lost point could be taken back, of every time that it is lost
WRONG_MOVE = 0.2  # weight of moving a point that is lost or hidden to a wrong place
FALSE_MOVES = 1.5e-4  # share of the frames in which a point is held, in which it may be moved away
PRIOR = 1e-4  # of what is fitted against zero, per squared weight


@dataclass(frozen=True)
class RealtimeRecipe:
    """What is particular to the real-time tracker's training."""

    # chance per frame and point that the search starts near the truth; 1 during warm-up, unless
    # the run goes on from trained weights
    teacher_forcing: float = 0.15
    teacher_noise: tuple[float, float] = (0.3, 8.0)  # px off such a start is, log-uniform
    fresh: int = 5  # frames of a clip that the encoder learns from; 0 leaves it as it is
    matching: float = 0.1  # weight of the contrastive loss on those frames
    # batches at the end, of the source photo, that what the cells of patches count is fitted on;
    # 0: it stays
    cells: int = 0
    calibration: int = 24  # batches at the end that what it shows is fitted on; 0: it stays
    redetection: int = 24  # the same of redetection


class RealtimeObjective(Objective):
    """The real-time tracker on its own rollout. Batch norm stays as the contrastive stage left
    it.
    """

    def __init__(self, model: nn.Module, config: TrainConfig):
        super().__init__(model.eval(), config)
        model.encoder.requires_grad_(False)
        model.aligner.requires_grad_(False)
        if config.realtime.cells and set(config.sources) != {'photo'}:
            raise ValueError('cells are fitted on the source photo alone: it knows their surfaces')
        if config.realtime.fresh:
            learn(model.encoder)
        # Folded once where it does not learn; in a tuple, so that it is no submodule with weights
        # of its own.
        self.frozen_encoder = () if config.realtime.fresh else (folded(model.encoder),)

    def forward(self, clips: Clips, step: int, first: int) -> dict[str, Tensor]:
        """The losses of a batch and measures of the result."""
        c = self.config
        forced = 1.0 if step < c.warmup and not c.start else c.realtime.teacher_forcing
        seeds = [c.seed * 1_000_003 + first + i for i in range(len(clips.video))]
        clips = clips.with_support(c.batch.support, self.model.image_size)
        (encoder,) = self.frozen_encoder or (folded(self.model.encoder),)
        encoder = encoder.to(clips.video.device)  # no submodule, it stays where it was made
        return realtime_losses(self.model, encoder, clips, c.loss, c.realtime, forced, seeds, step)

    def finish(self, model: nn.Module, batches: Iterable[Clips]) -> None:
        """Fit what counts of a patch, when a lost point is back, and what the tracker shows."""
        c = self.config.realtime
        if c.cells:
            clips = islice(batches, c.cells)
            fit_cells(model.aligner, tqdm(clips, 'samples', c.cells), self.config.seed)
        if c.redetection:
            clips = islice(batches, c.redetection)
            fit_redetection(model, tqdm(clips, 'redetection', c.redetection))
        if c.calibration:
            clips = islice(batches, c.calibration)
            calibrate(model, tqdm(clips, 'calibration', c.calibration), self.config.loss)


class Rollout(NamedTuple):
    """What every frame's search started from: Motion and templates (G, F, N, levels, C), age
    (G, F, N); and what it came to, see `Advanced`.
    """

    motion: Motion
    template: Tensor
    recent: Tensor
    age: Tensor
    network: Estimate
    best: Tensor
    calibration_features: Tensor
    redetection_features: Tensor


class TeacherForcing(NamedTuple):
    """Searches that start near the truth: which (G, F, N) bool, and how far off place and
    velocity are, (G, F, N, 2) px.
    """

    mask: Tensor
    xy_noise: Tensor
    velocity_noise: Tensor

    @classmethod
    def draw(
        cls, clips: Clips, probability: float, noise: tuple[float, float], seeds: list[int]
    ) -> TeacherForcing:
        """One seed for each clip, so that a clip's numbers do not depend on its batch."""
        count, frames, points = clips.visible.shape
        device, (low, high) = clips.video.device, noise
        parts = []
        for seed in seeds[:count]:
            rng = torch.Generator(device).manual_seed(seed)
            mask = torch.rand(frames, points, generator=rng, device=device) < probability
            off = torch.rand(frames, points, 1, generator=rng, device=device)
            off = low * (high / low) ** off  # small for most points
            noises = torch.randn(2, frames, points, 2, generator=rng, device=device)
            parts.append((mask, off * noises[0], 0.5 * off * noises[1]))
        mask, xy_noise, velocity_noise = (torch.stack(x) for x in zip(*parts, strict=True))
        # Only from a truth that is known, of the two frames before.
        known = torch.cat([torch.ones_like(mask[:, :2]), clips.known], 1)
        return cls(mask & known[:, 1:-1] & known[:, :-2], xy_noise, velocity_noise)


def has_bfloat16(device: str) -> bool:
    """Whether bfloat16 is fast here: a CPU without it is eight times slower with it."""
    return device != 'cpu' or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def folded(encoder: nn.Module) -> nn.Module:
    """A copy for inference: batch norms that directly follow a convolution are part of it."""
    encoder = copy.deepcopy(encoder).eval().requires_grad_(False)
    for part in encoder.modules():
        if isinstance(part, nn.Sequential):
            for i in range(len(part) - 1):
                if isinstance(part[i], nn.Conv2d) and isinstance(part[i + 1], nn.BatchNorm2d):
                    part[i] = fuse_conv_bn_eval(part[i], part[i + 1])
                    part[i + 1] = nn.Identity()
    return encoder.to(memory_format=torch.channels_last)


def encode(encoder: nn.Module, video: Tensor, image_scale: int = 1) -> list[Tensor]:
    """Feature maps of pictures (G, F, H, W, 3) uint8, per level (G F, C, h, w)."""
    device = video.device.type
    image = video.flatten(0, 1).movedim(-1, 1).float()
    if image_scale > 1:
        image = F.avg_pool2d(image, image_scale)
    with torch.autocast(device, torch.bfloat16, enabled=has_bfloat16(device)):
        return encoder(image.contiguous(memory_format=torch.channels_last))


def encode_rows(model: RealtimeTracker, encoder: nn.Module, video: Tensor) -> Tensor:
    """Features of pictures (G, F, H, W, 3) uint8 by the model's encoder or its folded copy, as
    `RealtimeTracker.rows`: (G, F, cells, C).
    """
    maps = encode(encoder, video, model.config.image_scale)
    return model.rows(maps).unflatten(0, video.shape[:2])


@torch.no_grad()
def roll_out(
    model: RealtimeTracker,
    rows: Tensor,
    clips: Clips,
    forcing: TeacherForcing,
) -> Rollout:
    """Run through the clips as on a stream; forced searches start near the truth instead."""
    count, frames, points_count = clips.visible.shape
    device = clips.video.device
    past = model.refiner.no_past(count, points_count, model.config.iterations, device)
    points = Points.empty(model, count, points_count, device)
    starts, results = [], []
    for t in range(frames):
        now, begun = clips.query_frame == t, clips.query_frame <= t
        here, before = clips.tracks[:, t], clips.tracks[:, max(t - 1, 0)]
        earlier = clips.tracks[:, max(t - 2, 0)]
        points = points.started(now, here, model.describe(rows[:, t], here))
        forced = (forcing.mask[:, t] & begun & ~now)[..., None]
        points = points._replace(
            xy=torch.where(forced, before + forcing.xy_noise[:, t], points.xy),
            velocity=torch.where(
                forced, before - earlier + forcing.velocity_noise[:, t], points.velocity
            ),
        )
        starts.append((*points.motion, points.template[:, None], points.recent[:, None]))
        pictures = model.aligner.pictures(clips.video[:, t])
        result = model.advance_frame(
            rows[:, t], pictures, points, past, now, begun, clips.keypoint
        )
        points, past = result.points, result.past
        results.append(
            (
                *result.network,
                result.best,
                result.calibration_features,
                result.redetection_features,
            )
        )
    age = torch.arange(frames, device=device)[None, :, None] - clips.query_frame[:, None]
    columns = [torch.cat(x, 1) for x in zip(*starts, strict=True)]
    shown = [torch.stack(x, 1) for x in zip(*results, strict=True)]
    motion, network = Motion._make(columns[:5]), Estimate._make(shown[:3])
    return Rollout._make([motion, *columns[5:], age, network, *shown[3:]])


def refine_all(
    model: RealtimeTracker,
    rows: Tensor,
    record: Rollout,
    keypoint: Tensor | None = None,
) -> Refined:
    """Refine all frames in parallel from the recorded starts; keypoint (G, N) as in `Clips`."""
    count, _, points = record.age.shape
    levels = model.correlate(rows.flatten(0, 1), torch.stack([record.template, record.recent], 3))
    masks = Masks.build(record.age, record.age >= 0, model.config.window)
    past = model.refiner.no_past(count, points, model.config.iterations, record.age.device)
    return model.refiner(levels, record.motion, masks, past, keypoint)


def refresh(
    model: RealtimeTracker, rows: Tensor, clips: Clips, record: Rollout, frames: Tensor
) -> tuple[Tensor, Rollout, Tensor]:
    """Encode some frames (K,) once more, with gradient, and put them in their places: rows,
    the record with the templates of points that were queried there, and the matching loss.
    """
    fresh = encode_rows(model, model.encoder, clips.video[:, frames])
    rows = rows.index_copy(1, frames, fresh)
    template = record.template
    for k, t in enumerate(frames.tolist()):
        now = clips.query_frame == t
        first = model.describe(fresh[:, k], clips.tracks[:, t])
        template = torch.where(now[:, None, :, None, None], first[:, None], template)
    # Matching goes from the first of these frames to the others.
    visible = clips.visible[:, frames]
    scale = torch.full((len(model.sizes),), MATCHING_SHARPNESS, device=frames.device)
    loss, _ = matching_loss(
        model.maps(fresh.flatten(0, 1)),
        clips.tracks[:, frames],
        visible & visible[:, :1],
        torch.zeros_like(clips.query_frame),
        model.config.strides,
        scale,
    )
    return rows, record._replace(template=template), loss


def realtime_losses(
    model: RealtimeTracker,
    encoder: nn.Module,
    clips: Clips,
    loss: LossConfig,
    recipe: RealtimeRecipe,
    forcing_share: float,
    seeds: list[int],
    step: int,
) -> dict[str, Tensor]:
    """The losses of a batch and measures of the result. One seed a clip for its teacher forcing;
    the step chooses the fresh frames, the same in all processes. `encoder` is the model's, folded.
    """
    with torch.no_grad():
        rows = encode_rows(model, encoder, clips.video)
    forcing = TeacherForcing.draw(clips, forcing_share, recipe.teacher_noise, seeds)
    record = roll_out(model, rows, clips, forcing)
    matching = rows.new_zeros(())
    if recipe.fresh:
        rng = torch.Generator().manual_seed(step)
        others = torch.randperm(clips.video.shape[1] - 1, generator=rng)[: recipe.fresh - 1]
        frames = torch.cat([others.new_zeros(1), others.sort().values + 1])
        rows, record, matching = refresh(model, rows, clips, record, frames.to(clips.video.device))
    refined = refine_all(model, rows, record, clips.keypoint)
    estimates = refined.estimates
    after, start = record.age > 0, record.motion.xy
    counted, visibility_known = after & clips.known, after & clips.visibility_known
    truth = clips.tracks, clips.visible, counted, start
    losses = tracking_loss(
        estimates, *truth, loss, clips.keypoint, clips.instance, visibility_known
    )
    losses['matching'] = matching
    losses['total'] = losses['total'] + recipe.matching * matching
    return losses


def correction(
    features: Tensor, logits: Tensor, target: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weights (D,) and constant () of a linear function of the features (S, D) which, added to the
    logits (S,), makes the target (S,) bool most likely: logistic regression, of samples that count
    by `weight` (S,). A weak Gaussian prior keeps the weights finite where few are separable.
    """
    scale = features.std(0, correction=0) + 1e-3
    scaled = (features - features.mean(0)) / scale
    share = torch.ones_like(logits) if weight is None else weight
    share, target = share / share.sum(), target.to(logits.dtype)
    slope = torch.zeros_like(features[0], requires_grad=True)
    constant = torch.zeros_like(logits[0], requires_grad=True)
    search = torch.optim.LBFGS([slope, constant], max_iter=200, line_search_fn='strong_wolfe')

    def closure() -> Tensor:
        search.zero_grad()
        shown = logits + scaled @ slope + constant
        loss = F.binary_cross_entropy_with_logits(shown, target, share, reduction='sum')
        loss = loss + PRIOR * slope.square().sum()
        loss.backward()
        return loss

    search.step(closure)
    slope = slope.detach() / scale
    return slope, constant.detach() - features.mean(0) @ slope


def roll_outs(
    model: RealtimeTracker, batches: Iterable[Clips]
) -> Iterator[tuple[Clips, Rollout, Tensor]]:
    """Clips tracked as on a stream, what it came to, and how far off points are, (G, F, N) px."""
    for clips in batches:
        with torch.no_grad():
            rows = encode_rows(model, model.encoder, clips.video)
            forcing = TeacherForcing.draw(clips, 0.0, (1.0, 1.0), [0] * len(clips.video))
            record = roll_out(model, rows, clips, forcing)
        yield clips, record, (record.network.xy - clips.tracks).norm(dim=-1)


def calibrate(model: RealtimeTracker, batches: Iterable[Clips], loss: LossConfig) -> None:
    """Fit the calibration of the probabilities that the tracker shows.

    The balanced losses train visibility and confidence as if both classes were equally frequent,
    and the tracker's own state goes on using these values. Here a correction of what is shown is
    fitted to the true frequencies on fresh clips, tracked as on a stream. A point that is lost is
    in sight elsewhere, and what is read of it is of the wrong place: counted in full, it teaches
    to call wrong places visible.
    """
    samples = []
    for clips, record, error in roll_outs(model, batches):
        columns = (
            record.calibration_features,
            record.network.visibility,
            record.network.confidence,
            clips.visible,
            error < loss.near,
            torch.where(clips.visible & (error > LOST), LOST_COUNTS, 1.0),
        )
        counted = (record.age > 0) & clips.visibility_known
        samples.append(tuple(column[counted] for column in columns))
    features, visibility, confidence, seen, near, counts = map(
        torch.cat, zip(*samples, strict=True)
    )
    weight, constant = model.calibration.weight.data, model.calibration.bias.data
    weight[0], constant[0] = correction(features, visibility, seen, counts)
    weight[1], constant[1] = correction(features[seen], confidence[seen], near[seen])


def fit_redetection(model: RealtimeTracker, batches: Iterable[Clips]) -> None:
    """Fit the probability that a lost point is back where its first template fits best.

    What counts is that a lost point is taken back soon, once: the frames in which it could be
    weigh 1 together, however long it stays lost. Tokens are left out: they say more about what the
    network was trained on than about other video. In the end the constant is chosen so that hardly
    a point that is held is moved away.
    """
    # Never redetected while it is fitted: the samples are of points that stay lost.
    nn.init.zeros_(model.redetection.weight)
    nn.init.constant_(model.redetection.bias, -100.0)
    samples, frames = [], 0  # frames in which a point is held
    for clips, record, error in roll_outs(model, batches):
        counted = (record.age > 0) & clips.known
        seen, off = counted & clips.visible, (record.best - clips.tracks).norm(dim=-1)
        held = seen & (error <= LOST)
        # A place that is near the estimate moves nothing away.
        wrong = (off > LOST) & ((record.best - record.network.xy).norm(dim=-1) > LOST)
        back = episode_weights(seen & ~held, off < BACK_WITHIN)
        away = held & wrong
        weight = back + away + WRONG_MOVE * (counted & ~held & wrong)
        columns = record.redetection_features[..., model.config.width :], back > 0, away, weight
        samples.append(tuple(column[weight > 0] for column in columns))
        frames += int(held.sum())
    features, back, away, weight = map(torch.cat, zip(*samples, strict=True))
    if not back.any():
        return  # nothing to learn from: no point is taken back
    slope, constant = correction(features, torch.zeros_like(weight), back, weight)
    rising = (features[away] @ slope + constant).sort(descending=True).values
    if len(rising):
        constant = constant - rising[min(int(FALSE_MOVES * frames), len(rising) - 1)]
    model.redetection.weight.data[0, model.config.width :] = slope
    model.redetection.bias.data[0] = constant


def episode_weights(lost: Tensor, right: Tensor) -> Tensor:
    """The weight (G, F, N) of each frame in which a lost point (G, F, N) bool could be taken back,
    as its best place is right: 1 in all for the first COUNTED_FRAMES of every time it is lost.
    """
    count = torch.zeros_like(lost[:, 0], dtype=torch.float)
    order = []
    for now, there in zip(lost.unbind(1), right.unbind(1), strict=True):
        count = torch.where(now, count + there.float(), 0.0)
        order.append(torch.where(now & there & (count <= COUNTED_FRAMES), count, 0.0))
    most, shares = torch.zeros_like(count), []
    for now, k in zip(reversed(lost.unbind(1)), reversed(order), strict=True):
        most = torch.where(now, torch.maximum(most, k), 0.0)
        shares.append((k > 0) / most.clamp(min=1))
    return torch.stack(shares[::-1], 1)
