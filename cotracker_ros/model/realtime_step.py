"""The real-time tracker on a stream: one frame in, its tracks and the next state out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from cotracker_ros.engines import spec
from cotracker_ros.model.realtime import Points, RealtimeTracker
from cotracker_ros.model.step import Step


class RealtimeStep(Step):
    """`RealtimeTracker.advance_frame` as a pure function, see Step."""

    rings = ('features',)

    def __init__(self, model: RealtimeTracker, iterations: int | None = None):
        super().__init__()
        self.model = model
        self.image_size = model.image_size
        self.image_scale = model.config.image_scale
        self.window = model.config.window
        if model.keypoints is not None:
            self.takes = (*spec.REQUIRED, 'keypoint')
        self.iterations = iterations or model.config.iterations
        self.sizes = [tuple(n // s for n in self.image_size) for s in model.config.strides]
        counts = [height * width for height, width in self.sizes]
        self.cells = sum(counts)

        def constant(name: str, values: list, dtype: torch.dtype) -> None:
            self.register_buffer(name, torch.tensor(values, dtype=dtype), persistent=False)

        constant('widths', [width for _, width in self.sizes], torch.int64)
        constant('offsets', [sum(counts[:k]) for k in range(len(counts))], torch.int64)
        constant('last', [(width - 1, height - 1) for height, width in self.sizes], torch.float32)
        constant('strides', [[s] for s in model.config.strides], torch.float32)

    def initial_state(self, cameras: int, slots: int) -> dict[str, Tensor]:
        """Zeros: an empty stream."""
        c = self.model.config
        # Half precision is exact enough for unit vectors.
        ring = torch.zeros(c.window, cameras, self.cells, c.features, dtype=torch.float16)
        past = (cameras, slots, c.window - 1, self.model.refiner.cache_width)
        return {
            'frame': torch.zeros(1, dtype=torch.int64),  # row of the ring for the new frame
            'features': ring,  # of the last frames, for queries of an older one
            **Points.empty(self.model, cameras, slots)._asdict(),
            **{f'past{k}': torch.zeros(past) for k in range(self.iterations)},
        }

    def advance(
        self, inputs: Mapping[str, Tensor], state: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See Step. The patch of a point that was queried on an older frame is cut in the newest
        one, where its features find it: pictures are not kept.
        """
        image, query_xy, live = inputs['image'], inputs['query_xy'], inputs['live']
        query, query_age = inputs['query'], inputs['query_age']
        features = self.model.encode(image)
        pictures = self.model.aligner.pictures(image)
        older = self.describe_past(state, query_xy, query_age)
        here = query & (query_age == 0)
        template = torch.where(
            here[..., None, None], self.model.describe(features, query_xy), older
        )
        points = Points(*(state[name] for name in Points._fields))
        points = points.started(query, query_xy, template)
        past = [state[f'past{k}'] for k in range(self.iterations)]
        result = self.model.advance_frame(
            features, pictures, points, past, here, live, inputs.get('keypoint')
        )

        used = live.float()
        kept = result.points._replace(
            xy=result.points.xy * used[..., None],
            velocity=result.points.velocity * used[..., None],
            visibility=result.points.visibility * used,
            confidence=result.points.confidence * used,
        )
        rows = torch.cat([feature.flatten(2) for feature in features], 2).transpose(1, 2)
        following = {
            'frame': (state['frame'] + 1) % self.window,
            'features': rows[None].half(),
            **kept._asdict(),
            **{f'past{k}': cache for k, cache in enumerate(result.past)},
        }
        shown = {
            'xy': kept.xy,
            'visibility': result.visibility,
            'confidence': result.confidence,
        }
        return shown, following

    def describe_past(self, state: dict[str, Tensor], xy: Tensor, age: Tensor) -> Tensor:
        """Templates (B, M, levels, C) at xy (B, M, 2) px in the frame `age` (B, M) frames ago,
        bilinear, from the ring of features. Four rows are gathered for each point: to read maps,
        as `sample_cells` does, the ring would have to be copied.
        """
        cameras = xy.shape[0]
        camera = torch.arange(cameras, device=xy.device)[:, None]
        frame = (state['frame'] - age) % self.window * cameras + camera
        place = torch.minimum((xy[..., None, :] / self.strides).clamp(min=0), self.last)
        corner = torch.minimum(place.floor(), self.last - 1)  # (B, M, levels, 2)
        part = place - corner
        x, y = corner.long().unbind(-1)
        base = frame[..., None] * self.cells + self.offsets + y * self.widths + x
        index = torch.stack([base, base + 1, base + self.widths, base + self.widths + 1], -1)
        (right, down), (left, up) = part.unbind(-1), (1 - part).unbind(-1)
        weight = torch.stack([left * up, right * up, left * down, right * down], -1)
        four = state['features'].flatten(0, 2).index_select(0, index.flatten())
        four = four.unflatten(0, index.shape).to(xy.dtype)
        return F.normalize((four * weight[..., None]).sum(-2), dim=-1)
