"""How CoTracker 1, 2 and 3 learn from a batch of clips: unrolled over sliding windows.

Every window starts from what the one before it found, and the losses of all windows are averaged,
so gradients run through the whole clip (CoTracker, section 3.3). A network that does not slide
sees the clip as one window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cotracker_ros.model.cotracker import CoTracker, WindowState, new_frames
from train.data.batch import Clips
from train.losses import LossConfig, tracking_loss
from train.objectives.base import Objective


@dataclass(frozen=True)
class WindowedRecipe:
    """What is particular to the training of CoTracker 1, 2 and 3."""

    iterations: int = 4  # refinements of a window (CoTracker3, section 4)


class WindowPrediction(NamedTuple):
    """One refinement of a window: xy (G, F, N, 2) px, logits (G, F, N)."""

    xy: Tensor
    visibility: Tensor
    confidence: Tensor | None


class WindowedObjective(Objective):
    """CoTracker 1, 2 or 3 over sliding windows; in bfloat16 on a GPU."""

    def forward(self, clips: Clips, step: int, first: int) -> dict[str, Tensor]:
        """The losses of a batch and measures of the result."""
        clips = clips.with_support(self.config.batch.support, self.model.image_size)
        device = clips.video.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device != 'cpu'):
            iterations = self.config.windowed.iterations
            return window_losses(self.model, clips, iterations, self.config.loss)


def window_losses(
    model: CoTracker, clips: Clips, iterations: int, loss: LossConfig
) -> dict[str, Tensor]:
    """The losses of a batch and measures of the result, averaged over windows."""
    video = clips.video.movedim(-1, 2)
    query_xy = clips.tracks.gather(1, clips.query_frame[:, None, :, None].expand(-1, 1, -1, 2))[
        :, 0
    ]
    queries = torch.cat([clips.query_frame[..., None].to(query_xy.dtype), query_xy], -1)
    state, windows = WindowState(queries, keypoint=clips.keypoint), []
    for piece in new_frames(video, model.config.window, model.config.sliding):
        start, (estimates, state) = state.start, model.advance(state, piece, iterations)
        frames = torch.arange(start, start + estimates[-1].xy.shape[2], device=video.device)
        after = clips.query_frame[:, None] < frames[:, None]
        counted, visibility_known = (
            after & clips.known[:, frames],
            after & clips.visibility_known[:, frames],
        )
        truth = clips.tracks[:, frames]
        predicted = [
            WindowPrediction(
                e.xy.transpose(1, 2) * model.config.stride,
                e.logits[..., 0].transpose(1, 2),
                e.logits[..., 1].transpose(1, 2) if e.logits.shape[-1] > 1 else None,
            )
            for e in estimates
        ]
        seen, body = clips.visible[:, frames], (clips.keypoint, clips.instance)
        windows.append(
            tracking_loss(predicted, truth, seen, counted, truth, loss, *body, visibility_known)
        )
    return {name: torch.stack([w[name] for w in windows]).mean() for name in windows[0]}
