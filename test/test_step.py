"""The windowed step against an independent form of it, and what a streaming runtime relies on."""

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from golden_rule import SMALL, randomise, video  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from cotracker_ros.engines import spec  # noqa: E402
from cotracker_ros.engines.torch_engine import step_metadata  # noqa: E402
from cotracker_ros.model import build_model  # noqa: E402
from cotracker_ros.model import embeddings as emb  # noqa: E402
from cotracker_ros.model.registry import build_step  # noqa: E402

SIZE = (64, 96)
STREAMED = ('cotracker2', 'cotracker3_online')
FRAMES = torch.from_numpy(video(52, *SIZE))
CLOSE = {'rtol': 0, 'atol': 1e-6}
INPUTS = spec.REQUIRED


def small_step(name, iterations=2, dtype=torch.float64, **changes):
    changes = {**SMALL, 'window': 8, **changes}
    model = randomise(build_model(name, SIZE, **changes)).to(dtype)
    return build_step(model.requires_grad_(False), iterations)


def inputs(t, slots, new=None, live=(), frames=FRAMES):
    """One camera's inputs: `new` maps slots to (x, y, age), `live` are the slots in use."""
    query_xy = torch.full((1, slots, 2), float('nan'))  # read nowhere but at queries
    query = torch.zeros(1, slots, dtype=torch.bool)
    age = torch.full((1, slots), -7, dtype=torch.int32)
    for slot, (x, y, a) in (new or {}).items():
        query_xy[0, slot] = torch.tensor([x, y])
        query[0, slot], age[0, slot] = True, a
    used = torch.tensor([[slot in live for slot in range(slots)]])
    return dict(zip(INPUTS, (frames[t][None], query_xy, query, age, used), strict=True))


def run(step, script, slots, frames=FRAMES):
    """Outputs of a stream; the script gives new points and live slots for each frame."""
    state, outputs = step.initial_state(1, slots), []
    for t, (new, live) in enumerate(script):
        out, state = step(inputs(t, slots, new, live, frames), state)
        outputs.append(out)
    return outputs


# Points come late, are restarted, removed, added to a used slot, and seen in the past.
SCRIPT = [
    ({0: (20, 30, 0), 1: (70.5, 12.25, 0)}, {0, 1}),
    ({}, {0, 1}),
    ({3: (50, 40, 2)}, {0, 1, 3}),
    ({}, {0, 1, 3}),
    ({1: (10, 60, 1)}, {0, 1, 3}),
    ({}, {0, 3}),
    *[({}, {0, 3})] * 5,
    ({1: (33.25, 44.5, 7), 2: (95, 63, 0)}, {0, 1, 2, 3}),
    *[({}, {0, 1, 2, 3})] * 3,
]


class Naive:
    """The step's definition, point by point, with every frame and every result kept for ever."""

    def __init__(self, step):
        self.model, self.window, self.iterations = step.model, step.window, step.iterations
        self.volumes = self.model.config.patch_template
        self.maps, self.points = [], {}

    def patch(self, maps, xy, kept=False):
        """Patches (levels, 49, C) around a point, by grid_sample; `kept`: of a frame in store."""
        a = torch.arange(7.0, dtype=torch.float64) - 3
        offsets = torch.stack(torch.meshgrid(a, a, indexing='ij'), -1).reshape(49, 2)
        patches = []
        for level in range(4):
            pooled = maps if level == 0 else F.avg_pool2d(maps, 2**level)
            pooled = pooled.half().double() if kept else pooled
            h, w = pooled.shape[-2:]
            scale = torch.tensor([2 / (w - 1), 2 / (h - 1)], dtype=torch.float64)
            grid = ((xy / 2**level + offsets) * scale - 1)[None, None]
            got = F.grid_sample(pooled[None], grid, padding_mode='border', align_corners=True)
            patches.append(got[0, :, 0].T)
        return torch.stack(patches)

    def correlation(self, patches, reference):
        if not self.volumes:
            return (patches @ reference).flatten() / 4  # sqrt of 16 channels
        volumes = (p @ q.T for p, q in zip(patches, reference, strict=True))
        return torch.cat([self.model.update.correlation.mlp(v.flatten()) for v in volumes])

    def start(self, xy, age):
        maps = self.maps[-1 - age]
        xy = torch.tensor(xy, dtype=torch.float64) / 4
        patches = self.patch(maps, xy, kept=age > 0)
        template = patches if self.volumes else patches[0, 24]
        logits = torch.full((self.model.update.logits,), self.model.config.start_logit).double()
        still = (xy, logits, self.correlation(patches, template))
        fixed = xy if age == 0 else None
        return {'template': template, 'past': [still] * self.window, 'fixed': fixed}

    def tokens(self, xy, logits, corr, first, feature):
        if self.volumes:
            motion = emb.motion_encoding(xy, (SIZE[0] // 4, SIZE[1] // 4))
            return torch.cat([logits, corr, motion], -1)
        mask = torch.zeros(self.window, 1).double()
        mask[-1] = 1
        parts = [emb.displacement_encoding(xy), corr, feature, mask, first['logits']]
        place = emb.position_table(first['xy'][0], (SIZE[0] // 4, SIZE[1] // 4), 344)
        return torch.cat(parts, -1) + place

    def step(self, image, new, live):
        frame = image.permute(2, 0, 1).double()[None] / 127.5 - 1
        maps = self.model.encoder(frame)[0]
        if self.volumes:
            maps = F.normalize(maps, dim=0)
        self.maps.append(maps)
        for slot, (x, y, age) in new.items():
            self.points[slot] = self.start((x, y), age)
        self.points = {slot: self.points[slot] for slot in sorted(live)}
        size = self.model.update.token_size
        time = emb.sincos(torch.arange(self.window).double(), size)

        tracks = []
        for point in self.points.values():
            window = point['past'][1 - self.window :]
            xy = torch.stack([e[0] for e in window] + [window[-1][0]])
            logits = torch.stack([e[1] for e in window] + [window[-1][1]])
            feature = None if self.volumes else point['template'].expand(self.window, -1)
            first = {'xy': xy, 'logits': logits}
            tracks.append({'xy': xy, 'logits': logits, 'feature': feature, 'first': first})
        for _ in range(self.iterations):
            tokens = []
            for point, track in zip(self.points.values(), tracks, strict=True):
                old = [e[2] for e in point['past'][1 - self.window :]]
                reference = point['template'] if self.volumes else track['feature'][-1]
                patches = self.patch(maps, track['xy'][-1])
                corr = torch.stack([*old, self.correlation(patches, reference)])
                parts = (track['xy'], track['logits'], corr, track['first'], track['feature'])
                tokens.append(self.tokens(*parts) + time)
            deltas = self.model.transformer(torch.stack(tokens)[None])[0] if tokens else []
            for track, delta in zip(tracks, deltas, strict=True):
                track['xy'] = torch.cat([track['xy'][:-1], track['xy'][-1:] + delta[-1:, :2]])
                if self.volumes:
                    newest = track['logits'][-1:] + delta[-1:, 2:]
                else:
                    update = self.model.update
                    gain = F.gelu(update.feature(update.norm(delta[-1:, 2:])))
                    feature = track['feature']
                    track['feature'] = torch.cat([feature[:-1], feature[-1:] + gain])
                    newest = update.visibility(track['feature'][-1:])
                track['logits'] = torch.cat([track['logits'][:-1], newest])
        results = {}
        for (slot, point), track in zip(self.points.items(), tracks, strict=True):
            fixed, point['fixed'] = point['fixed'], None
            xy, logits = track['xy'][-1] if fixed is None else fixed, track['logits'][-1]
            corr = self.correlation(self.patch(maps, xy), point['template'])
            point['past'].append((xy, logits, corr))
            visible = 1.0 if fixed is not None else float(logits[0].sigmoid())
            results[slot] = (*(4 * xy).tolist(), visible)
        return results


@pytest.mark.parametrize('name', STREAMED)
def test_the_step_is_its_definition(name):
    step = small_step(name)
    naive = Naive(step)
    for t, (out, (new, live)) in enumerate(zip(run(step, SCRIPT, 5), SCRIPT, strict=True)):
        for slot, expected in naive.step(FRAMES[t], new, live).items():
            actual = [*out['xy'][0, slot].tolist(), float(out['visibility'][0, slot])]
            assert actual == pytest.approx(expected, rel=0, abs=1e-6), (t, slot)
        dead = [slot for slot in range(5) if slot not in live]
        assert all(not out[field][0, dead].any() for field in out)


@pytest.mark.parametrize('name', STREAMED)
def test_unused_slots_change_nothing(name):
    step = small_step(name)
    for few, many in zip(run(step, SCRIPT, 4), run(step, SCRIPT, 40), strict=True):
        for field in few:
            torch.testing.assert_close(few[field], many[field][:, :4], **CLOSE)


@pytest.mark.parametrize('name', STREAMED)
def test_a_late_point_tracks_as_in_a_new_stream(name):
    step = small_step(name)
    late = [({}, set())] * 9 + [({1: (40, 20, 0)}, {1})] + [({}, {1})] * 9
    fresh = [({1: (40, 20, 0)}, {1})] + [({}, {1})] * 9
    late, fresh = run(step, late, 2), run(step, fresh, 2, FRAMES[9:])
    for a, b in zip(late[9:], fresh, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.parametrize('name', STREAMED)
def test_a_restarted_or_reused_slot_remembers_nothing(name):
    step = small_step(name)
    query = {0: (40, 20, 0)}
    begin = [({0: (80, 50, 0)}, {0})] * 2 + [({}, {0})] * 2
    for between in ([({}, {0})], [({}, set())] * 2):
        used = begin + between
        script = [*used, (query, {0}), *[({}, {0})] * 3]
        again = run(step, script, 1)[len(used) :]
        fresh = run(step, script[len(used) :], 1, FRAMES[len(used) :])
        for a, b in zip(again, fresh, strict=True):
            torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.parametrize('name', STREAMED)
def test_a_point_seen_earlier_has_the_template_of_that_frame(name):
    step = small_step(name, dtype=torch.float32)
    frames = FRAMES.clone()
    script = [({}, set())] * 7 + [({0: (40, 20, 5)}, {0})]
    expected = run(step, script, 1, frames)[-1]['xy']
    for t, matters in ((1, False), (2, True), (3, False), (7, True)):
        changed = frames.clone()
        changed[t] = frames[t].flip(0)
        same = torch.equal(run(step, script, 1, changed)[-1]['xy'], expected)
        assert same != matters, t
    # Before a still camera all ages are one, and only age 0 is known to be where it was asked for.
    still = frames[:1].expand(8, -1, -1, -1)
    scripts = ([*script[:7], ({0: (40, 20, age)}, {0})] for age in (0, 2, 5))
    now, *aged = (run(step, each, 1, still)[-1] for each in scripts)
    torch.testing.assert_close(*aged, rtol=0, atol=0)
    assert now['xy'].tolist() == [[[40, 20]]] and now['visibility'].tolist() == [[1]]
    assert aged[0]['xy'].tolist() != [[[40, 20]]] and aged[0]['visibility'] < 1


@pytest.mark.parametrize('name', STREAMED)
def test_cameras_do_not_meet(name):
    step = small_step(name)
    frames = (FRAMES, FRAMES.flip(1))
    scripts = (SCRIPT, SCRIPT[::-1])
    alone = [run(step, script, 4, f) for script, f in zip(scripts, frames, strict=True)]
    state = step.initial_state(2, 4)
    for t in range(len(SCRIPT)):
        each = [inputs(t, 4, *script[t], f) for script, f in zip(scripts, frames, strict=True)]
        out, state = step({k: torch.cat([e[k] for e in each]) for k in INPUTS}, state)
        for camera in range(2):
            for field in out:
                expected = alone[camera][t][field][0]
                torch.testing.assert_close(out[field][camera], expected, **CLOSE)


@pytest.mark.parametrize('name', STREAMED)
def test_the_state_is_constant_in_size_and_finite_when_empty(name):
    step = small_step(name, 1, torch.float32)
    state = step.initial_state(1, 3)
    shapes = {key: (value.shape, value.dtype) for key, value in state.items()}
    assert not any(value.any() for value in state.values())
    for t in range(12):
        out, state = step(inputs(t, 3), state)
    assert {key: (value.shape, value.dtype) for key, value in state.items()} == shapes
    assert all(value.isfinite().all() for value in state.values())
    assert not any(value.any() for value in out.values())


def test_what_cannot_be_streamed_is_refused():
    for name, reason in (('cotracker1', 'empty slots'), ('cotracker3_offline', 'whole video')):
        changes = {**SMALL, 'virtual': 0} if name == 'cotracker1' else SMALL
        with pytest.raises(ValueError, match=f'{name} cannot be streamed.*{reason}'):
            build_step(build_model(name, SIZE, **changes), 1)
    with pytest.raises(ValueError, match='iterations is 0'):
        build_step(build_model('cotracker2', SIZE, **SMALL), 0)


@pytest.mark.parametrize('name', STREAMED)
def test_onnx_runtime_gives_the_same_tracks(name, tmp_path):
    ort = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    from export import export_onnx

    step, path = small_step(name, 1, torch.float32, depth=1), tmp_path / 'step.onnx'
    made = export_onnx.export(step, step_metadata(step.model, step, provenance='a test'), path)
    operators = {node.op_type for node in made.graph.node}
    assert not operators & {'GridSample', 'ScatterND', 'Einsum', 'Loop', 'If', 'NonZero'}

    session = ort.InferenceSession(path, providers=['CPUExecutionProvider'])
    script = (SCRIPT + SCRIPT[1:] * 3)[:50]
    slots = 6
    state = step.initial_state(1, slots)
    theirs = {key: value.numpy().copy() for key, value in state.items()}
    worst, ring = 0.0, theirs['features']
    for t, (new, live) in enumerate(script):
        given = inputs(t, slots, new, live)
        out, state = step(given, state)
        feed = {key: value.numpy() for key, value in given.items()}
        feed['query_xy'] = np.nan_to_num(feed['query_xy'])
        given = {spec.STATE + key: value for key, value in theirs.items()}
        got = session.run(None, {**feed, **given})
        theirs = dict(zip(theirs, got[3:], strict=True))
        ring[t % len(ring)] = theirs['features'][0]
        theirs['features'] = ring
        worst = max(worst, np.abs(got[0] - out['xy'].numpy()).max())
        np.testing.assert_allclose(got[1], out['visibility'], rtol=0, atol=1e-3)
    assert worst < 0.01  # px
