"""The real-time tracker on a stream: one frame in, its tracks and the next state out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
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

    def initial_state(self, cameras: int, slots: int) -> dict[str, Tensor]:
        """Zeros: an empty stream."""
        c = self.model.config
        # Half precision is exact enough for unit vectors.
        ring = torch.zeros(c.window, cameras, self.model.cells, c.features, dtype=torch.float16)
        past = self.model.refiner.no_past(cameras, slots, self.iterations)
        return {
            'frame': torch.zeros(1, dtype=torch.int64),  # row of the ring for the new frame
            'features': ring,  # of the last frames, for queries of an older one
            **Points.empty(self.model, cameras, slots)._asdict(),
            **{f'past{k}': cache for k, cache in enumerate(past)},
        }

    def advance(
        self, inputs: Mapping[str, Tensor], state: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See Step. The patch of a point that was queried on an older frame is cut in the newest
        one, where its features find it: pictures are not kept.
        """
        image, query_xy, live = inputs['image'], inputs['query_xy'], inputs['live']
        query, query_age = inputs['query'], inputs['query_age']
        rows = self.model.encode(image)
        pictures = self.model.aligner.pictures(image)
        here = query & (query_age == 0)
        template = self.model.describe_query(
            rows, state['features'], state['frame'], query_xy, query_age
        )
        points = Points(*(state[name] for name in Points._fields))
        points = points.started(query, query_xy, template)
        past = [state[f'past{k}'] for k in range(self.iterations * self.model.config.depth)]
        result = self.model.advance_frame(
            rows, pictures, points, past, here, live, inputs.get('keypoint')
        )

        used = live.float()
        kept = result.points._replace(
            xy=result.points.xy * used[..., None],
            velocity=result.points.velocity * used[..., None],
            visibility=result.points.visibility * used,
            confidence=result.points.confidence * used,
        )
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
