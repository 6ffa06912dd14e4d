"""The streaming step: one frame in, its tracks and the next state out, as a pure function.

For CoTracker 2 and 3 online, without training them anew: the window of S frames moves by one with
every frame, warm-started. What has been found in earlier frames stays as it was found; only the
newest frame is refined, from the last estimate on. So of an earlier frame nothing is needed but
its track and its correlation, taken when it was newest, once more after its last refinement:
a correlation at any other place than the track tells the network to move on, frame after frame.
Feature maps are kept only to start points on earlier frames; nothing shifts them, see `Step`.

Before its start a point has always stood still: all earlier frames of the window hold its
query's position, correlation and initial logits. A new point thus needs no empty window.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cotracker_ros.engines import spec
from cotracker_ros.model.cotracker import CoTracker, WindowEstimate, where_points
from cotracker_ros.model.embeddings import time_table
from cotracker_ros.model.sampling import Read, reader

State = dict[str, Tensor]
Inputs = Mapping[str, Tensor]


class Step(nn.Module):
    """One frame of every camera as a pure function: (outputs, next_state) = step(inputs, state).

    What is kept of whole frames lies in rings (S, B, ...), one row a frame: the newest is written
    to row `state['frame']`, and no other row is ever moved or copied, which for past feature maps
    took a tenth of a step and more. `advance` therefore gives of a ring only the new row (1, B,
    ...), and the keeper of the state writes it to its place; `forward` does so in a copy.

    `image_size` is (H, W) in pixels, in which all coordinates are; the frames given are
    `image_scale` times as high and wide. `window` S is the number of frames that a point is judged
    on; the largest `query_age` is S - 1. `takes` names the inputs that the step reads, of those in
    engines.spec.
    """

    image_size: tuple[int, int]
    image_scale: int = 1
    window: int
    iterations: int
    takes: tuple[str, ...] = spec.REQUIRED
    rings: tuple[str, ...] = ()  # state tensors with a row for each of the last S frames

    def initial_state(self, cameras: int, slots: int) -> State:
        """Make the state of an empty stream: zeros, sizes independent of time."""
        raise NotImplementedError

    def advance(self, inputs: Inputs, state: State) -> tuple[dict[str, Tensor], State]:
        """Track the live slots into a new frame.

        Of `inputs` those that it `takes` are read: `image` (B, kH, kW, 3) uint8 RGB with k the
        `image_scale`; for each slot `query_xy` (B, M, 2) in pixels, `query` (B, M) bool to
        (re)start it now, `query_age` (B, M) int32 frames since its query was seen, `live` (B, M)
        bool, and perhaps `keypoint` (B, M) int32, the number of a body's keypoint or -1. Gives xy
        (B, M, 2) in pixels, visibility and confidence (B, M), all 0 in slots that are not live
        and, in the frame of its query, a point's query_xy and 1 and 1; and the next state, of
        rings the new row.
        """
        raise NotImplementedError

    def forward(self, inputs: Inputs, state: State) -> tuple[dict[str, Tensor], State]:
        """Do as `advance`, but give the next state whole."""
        outputs, following = self.advance(inputs, state)
        for name in self.rings:
            following[name] = state[name].index_copy(0, state['frame'], following[name])
        return outputs, following


class WindowedStep(Step):
    """Start new points, find all live ones, shift the window."""

    rings = ('features',)

    def __init__(self, model: CoTracker, iterations: int) -> None:
        super().__init__()
        self.model = model
        self.iterations = iterations
        self.image_size = model.image_size
        self.window = model.config.window
        if model.keypoints is not None:
            self.takes = (*spec.REQUIRED, 'keypoint')
        time = time_table(self.window, self.window, model.update.token_size)
        self.register_buffer('time', time.to(model.weight), persistent=False)
        # A mask of CoTracker 2, 1 where a track is still open: nowhere but in the newest frame.
        newest = torch.arange(self.window) == self.window - 1
        self.register_buffer('newest', newest.to(model.weight), persistent=False)

    def initial_state(self, cameras: int, slots: int) -> State:
        """Make the state of an empty stream: zeros, sizes independent of time."""
        update, past = self.model.update, self.window - 1
        rows, channels = self.model.layout.rows, self.model.config.channels

        def zeros(*shape: int, dtype: torch.dtype = self.time.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.time.device)

        return {
            'frame': zeros(1, dtype=torch.int64),  # row of the ring that the new frame is put in
            'features': zeros(self.window, cameras, rows, channels, dtype=torch.float16),
            'template': zeros(cameras, slots, *update.template_shape),
            'xy': zeros(cameras, slots, past, 2),
            'logits': zeros(cameras, slots, past, update.logits),
            'correlation': zeros(cameras, slots, past, update.correlation.size),
        }

    def advance(self, inputs: Inputs, state: State) -> tuple[dict[str, Tensor], State]:
        """See Step."""
        model, update = self.model, self.model.update
        query, live = inputs['query'], inputs['live']
        fresh = model.encode_together(inputs['image'].permute(0, 3, 1, 2))
        cameras = torch.arange(fresh.shape[0], device=fresh.device, dtype=torch.int32)[:, None]

        # What is read only where a slot is queried may hold anything elsewhere, also NaN.
        age = torch.where(query, inputs['query_age'], 0)
        query_xy = where_points(query, inputs['query_xy'] / model.config.stride, 0)
        read = self._reader_at(age, cameras, fresh, state)
        patches = model.patches(read, query_xy)
        template = where_points(query, update.template(patches), state['template'])
        still = query_xy[:, :, None]
        logits = still.new_full((1, 1, 1, update.logits), model.config.start_logit)
        seed = update.begin(still, logits, template)
        corr = update.correlate(patches[:, :, None], seed, template)
        past_xy = where_points(query, still, state['xy'])
        past_logits = where_points(query, logits, state['logits'])
        past_corr = where_points(query, corr, state['correlation'])

        past = update.begin(past_xy, past_logits, template)
        newest = past.over(slice(-1, None))
        start = past.followed_by(newest)
        logit = start.logits[..., 0]
        known = torch.stack([self.newest.expand_as(logit), logit], dim=-1)
        read = reader(fresh, cameras)
        for _ in range(self.iterations):
            corr = torch.cat([past_corr, self._correlate(read, newest, template)], dim=2)
            estimate = past.followed_by(newest)
            tokens = update.tokens(estimate, start, known, corr) + self.time
            tokens = model.named(tokens, inputs.get('keypoint'))
            newest = update.apply_delta(newest, model.transformer(tokens, live, wanted=1))

        # In its query frame a point is where it was queried, and visible.
        here = query & (age == 0)
        newest = update.begin(where_points(here, still, newest.xy), newest.logits, template)
        corr = self._correlate(read, newest, template)
        tracks = model.read_out(newest)
        outputs = {
            'xy': where_points(live, tracks.xy[:, 0], 0),
            'visibility': torch.where(live, torch.where(here, 1, tracks.visibility[:, 0]), 0),
            'confidence': torch.where(live, torch.where(here, 1, tracks.confidence[:, 0]), 0),
        }
        estimate = past.followed_by(newest).over(slice(1, None))
        following = {
            'frame': (state['frame'] + 1) % self.window,
            'features': fresh[None].half(),
            'template': template,
            # Unused slots go on computing; emptied, they cannot drift to numbers that overflow.
            'xy': where_points(live, estimate.xy, 0),
            'logits': where_points(live, estimate.logits, 0),
            'correlation': torch.cat([past_corr[:, :, 1:], corr], dim=2),
        }
        return outputs, following

    def _reader_at(self, age: Tensor, cameras: Tensor, fresh: Tensor, state: State) -> Read:
        """Read pyramids as they were `age` (B, M) frames ago."""
        row = (state['frame'].int() - age) % self.window
        now = reader(fresh, cameras)
        then = reader(state['features'].flatten(0, 1), row * fresh.shape[0] + cameras)
        return lambda index: torch.where(
            (age == 0)[..., None, None], now(index), then(index).to(fresh.dtype)
        )

    def _correlate(self, read: Read, newest: WindowEstimate, template: Tensor) -> Tensor:
        """Correlate around an estimate of one frame: (B, M, 1, E)."""
        patches = self.model.patches(read, newest.xy[:, :, 0])
        return self.model.update.correlate(patches[:, :, None], newest, template)
