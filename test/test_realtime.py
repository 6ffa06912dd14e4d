"""The real-time tracker: frame by frame equals all at once, slots are independent, ages and
restarts hold.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from cotracker_ros.engines import spec  # noqa: E402
from cotracker_ros.geometry import rescale  # noqa: E402
from cotracker_ros.model import load_checkpoint  # noqa: E402
from cotracker_ros.model.realtime import (  # noqa: E402
    CorrelationMap,
    Masks,
    Motion,
    NearCorrelation,
    Points,
    RealtimeConfig,
    RealtimeTracker,
    Refiner,
    upgraded,
)
from cotracker_ros.model.realtime_step import RealtimeStep  # noqa: E402
from cotracker_ros.model.subpixel import Alignment  # noqa: E402
from train.data.synthetic.procedural import ProceduralVideo, SceneConfig  # noqa: E402
from train.losses import LossConfig  # noqa: E402
from train.objectives import realtime as objective  # noqa: E402
from train.objectives.realtime import TeacherForcing, encode_rows, refine_all, roll_out  # noqa: E402

SIZE = (96, 128)
WEIGHTS = Path(__file__).parents[1] / 'cotracker_ros/weights/realtime.safetensors'
CONFIG = RealtimeConfig(features=16, width=32, depth=2, virtual=4, iterations=3, image_scale=1)


@pytest.fixture(scope='module')
def model():
    """A small tracker with random weights whose outputs depend on all of its inputs."""
    torch.manual_seed(0)
    model = RealtimeTracker(CONFIG, SIZE).eval()
    torch.nn.init.normal_(model.refiner.head[1].weight, std=0.05)
    torch.nn.init.normal_(model.calibration.weight, std=0.1)
    return model


@pytest.fixture(scope='module')
def clips():
    """Two textured clips of ten frames."""
    return ProceduralVideo(SceneConfig(size=SIZE, frames=10), seed=1, bank=6).clips(2, 5)


def inputs(image, slots, queries=(), live=(), cameras=1):
    """Step inputs; queries maps slot to (x, y, age)."""
    xy = torch.zeros(cameras, slots, 2)
    query = torch.zeros(cameras, slots, dtype=torch.bool)
    age = torch.zeros(cameras, slots, dtype=torch.int32)
    for slot, (x, y, a) in dict(queries).items():
        xy[:, slot], query[:, slot], age[:, slot] = torch.tensor([x, y]), True, a
    used = torch.zeros_like(query)
    used[:, list(live)] = True
    return dict(zip(spec.REQUIRED, (image, xy, query, age, used), strict=True))


@torch.no_grad()
def run(step, frames, slots, plan, live):
    """Track frames (T, H, W, 3); plan maps a frame to its queries. Returns xy (T, slots, 2) and
    visibility.
    """
    state, rows, begun = step.initial_state(1, slots), [], set()
    for t, frame in enumerate(frames):
        begun |= set(plan.get(t, ()))
        out, state = step(inputs(frame[None], slots, plan.get(t, ()), begun & set(live)), state)
        rows.append(torch.cat([out['xy'][0], out['visibility'][0, :, None]], -1))
    return torch.stack(rows)


def test_frame_by_frame_equals_all_frames_in_parallel(model, clips):
    # Training refines all frames at once under a causal mask; the stream keeps caches. The same
    # numbers.
    step = RealtimeStep(model)
    clip = clips.video[0]
    start = clips.query_frame[0]
    plan = {}
    for n, t in enumerate(start.tolist()):
        plan.setdefault(t, {})[n] = (*clips.tracks[0, t, n].tolist(), 0)
    streamed = run(step, clip, 5, plan, range(5))

    rows = encode_exact(model, clips)
    record = roll_out(model, rows, clips, TeacherForcing.draw(clips, 0.0, (1.0, 1.0), [0, 1]))
    after = torch.arange(10)[:, None] > start
    # The next frame's search starts from this frame's result.
    found = record.motion.xy[0, 1:]
    assert torch.allclose(found[after[1:]], streamed[:-1, :, :2][after[1:]], atol=2e-2)
    with torch.no_grad():
        network = refine_all(model, rows, record).estimates[-1]
        shown = record.network.visibility + model.calibration(record.calibration_features)[..., 0]
    assert torch.allclose(record.network.xy[0][after], streamed[..., :2][after], atol=2e-2)
    assert torch.allclose(shown.sigmoid()[0][after], streamed[..., 2][after], atol=2e-3)
    for one, two in zip(network[1:], record.network[1:], strict=True):
        assert torch.allclose(one[0][after], two[0][after], atol=2e-3)


@torch.no_grad()
def test_the_state_holds_how_far_a_point_moved(model, clips):
    step = RealtimeStep(model)
    state, before = step.initial_state(1, 2), None
    for t, frame in enumerate(clips.video[0, :4]):
        queries = {0: (30, 40, 0), 1: (80, 50, 0)} if t == 0 else ()
        out, state = step(inputs(frame[None], 2, queries, range(2)), state)
        moved = 0 * out['xy'] if before is None else out['xy'] - before
        assert torch.allclose(state['velocity'], moved, atol=1e-4)
        before = out['xy']
    assert moved.abs().max() > 0.1


@torch.no_grad()
def test_the_search_starts_ahead_by_half_of_the_last_displacement():
    """Seen in a head that corrects nothing."""
    refiner = Refiner(CONFIG).eval()
    torch.nn.init.zeros_(refiner.head[1].weight)
    refiner.head[1].bias[:2], refiner.head[1].bias[2:] = 0, -50  # no shift, all gates closed
    some = torch.zeros(1, 1, 1)
    motion = Motion(
        torch.tensor([[[[40.0, 30]]]]), torch.tensor([[[[4.0, -2]]]]), some, some, some
    )
    sizes = (12, 16), (6, 8), (3, 4), (1, 2)
    levels = [CorrelationMap(torch.zeros(1, 2, *size)) for size in sizes]
    masks = Masks.build(torch.zeros(1, 1, 1, dtype=torch.int32), some > -1, CONFIG.window)
    found = refiner(levels, motion, masks, refiner.no_past(1, 1, 1)).estimates[-1].xy
    assert torch.allclose(found, torch.tensor([[[[42.0, 29]]]]), atol=1e-4)


def test_windows_without_a_map_are_those_of_the_map():
    size, points, channels, offsets = (6, 9), 40, 5, Refiner(CONFIG).offsets
    rng = np.random.default_rng(0)
    cells = torch.from_numpy(rng.standard_normal((2, 54, channels)))
    templates = torch.from_numpy(rng.standard_normal((2, points, 2, channels)))
    level = NearCorrelation(cells, size, templates)
    places = rng.uniform((-6, -6), (14, 11), (2, points, 2))  # in the picture and far outside
    places[0, :4] = (0, 0), (8, 5), (-1, 5), (2.5, 6)
    found = [x.windows(torch.from_numpy(places), offsets.double()) for x in
             (level, level.everywhere())]  # fmt: skip
    assert found[0].shape == (2, points, 2, 49) and (found[0] == 0).any()
    assert torch.allclose(*found, atol=1e-9)


def encode_exact(model, clips):
    """Features in full precision, (G, F, cells, C)."""
    with torch.no_grad():
        maps = model.encoder(clips.video.flatten(0, 1).movedim(-1, 1).float())
    return model.rows(maps).unflatten(0, clips.video.shape[:2])


def test_bfloat16_features_stay_close(model, clips):
    rounded = encode_rows(model, model.encoder, clips.video)
    assert (encode_exact(model, clips) - rounded).abs().max() < 0.1


def test_unused_slots_change_nothing(model, clips):
    step = RealtimeStep(model)
    plan = {0: {0: (30, 40, 0), 1: (80, 50, 0)}}
    few = run(step, clips.video[0], 2, plan, range(2))
    many = run(step, clips.video[0], 7, plan, range(2))
    assert torch.allclose(few, many[:, :2], atol=2e-3)
    assert not many[:, 2:].any()


def test_a_point_added_late_tracks_like_one_of_a_new_stream(model, clips):
    step = RealtimeStep(model)
    late = run(step, clips.video[0], 2, {4: {1: (60, 50, 0)}}, range(2))
    new = run(step, clips.video[0, 4:], 2, {0: {1: (60, 50, 0)}}, range(2))
    assert torch.allclose(late[4:], new, atol=1e-4)


def test_a_restarted_slot_forgets(model, clips):
    step = RealtimeStep(model)
    again = run(step, clips.video[0], 1, {0: {0: (20, 30, 0)}, 5: {0: (60, 50, 0)}}, range(1))
    new = run(step, clips.video[0, 5:], 1, {0: {0: (60, 50, 0)}}, range(1))
    assert torch.allclose(again[5:], new, atol=1e-4)


def test_an_old_query_takes_its_template_from_the_old_frame(model, clips):
    step = RealtimeStep(model)
    frames = clips.video[0].clone()
    shown = run(step, frames, 1, {5: {0: (60, 50, 3)}}, range(1))
    frames[3:6] = 128  # other frames: only the one it was seen in, and the newest, matter
    frames[5] = clips.video[0, 5]
    hidden = run(step, frames, 1, {5: {0: (60, 50, 3)}}, range(1))
    assert torch.allclose(shown[5], hidden[5], atol=1e-4)
    frames[2] = 128
    assert not torch.allclose(
        shown[5], run(step, frames, 1, {5: {0: (60, 50, 3)}}, range(1))[5], atol=1e-4
    )


def test_a_template_is_the_same_from_the_ring_and_from_the_frame(model, clips):
    rows = encode_exact(model, clips)
    xy = torch.rand(1, 30, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [127.0, 95.0]
    )
    for frame, age in ((7, 1), (7, 3), (1, 4)):
        newest, then = rows[:1, frame], rows[:1, (frame - age) % 8]
        ring, at = rows[0, :8, None].half(), torch.tensor([frame])
        ages = torch.full((1, 30), age, dtype=torch.int32)
        past = model.describe_query(newest, ring, at, xy, ages)
        assert torch.allclose(past, model.describe(then, xy), atol=2e-3)
        fresh = model.describe_query(newest, ring, at, xy, 0 * ages)
        assert torch.equal(fresh, model.describe(newest, xy))


def test_a_template_is_read_bilinearly(model, clips):
    rows = encode_exact(model, clips)[0, :1]
    xy = torch.tensor([[[0.0, 0.0], [33.3, 47.1], [127.0, 95.0], [-9.0, 200.0]]])
    for level, (size, stride) in enumerate(zip(model.sizes, model.config.strides, strict=True)):
        last = torch.tensor([size[1] - 1.0, size[0] - 1.0])
        grid = (xy / stride / last * 2 - 1)[:, :, None]
        read = torch.nn.functional.grid_sample(
            model.maps(rows)[level], grid, padding_mode='border', align_corners=True
        )
        want = torch.nn.functional.normalize(read[..., 0].transpose(1, 2), dim=-1)
        assert torch.allclose(model.describe(rows, xy)[:, :, level], want, atol=1e-5)


def test_cameras_are_independent(model, clips):
    step = RealtimeStep(model)
    with torch.no_grad():
        state, rows = step.initial_state(2, 3), []
        for t in range(4):
            queries = {0: (30, 40, 0), 2: (70, 20, 0)} if t == 0 else {}
            out, state = step(inputs(clips.video[:, t], 3, queries, (0, 2), cameras=2), state)
            rows.append(out['xy'])
    plan = {0: {0: (30, 40, 0), 2: (70, 20, 0)}}
    for camera in range(2):
        alone = run(step, clips.video[camera, :4], 3, plan, (0, 2))
        assert torch.allclose(torch.stack(rows)[:, camera], alone[..., :2], atol=1e-3)


def test_no_live_point_is_finite(model, clips):
    assert torch.isfinite(run(RealtimeStep(model), clips.video[0, :3], 2, {}, ())).all()


def test_whole_video_tracking_is_the_stream(model, clips):
    video = clips.video[0].movedim(-1, 1).float()
    queries = torch.tensor([[0.0, 30, 40], [3, 60, 50]])
    tracks = model.track(video, queries)
    streamed = run(
        RealtimeStep(model),
        clips.video[0],
        2,
        {0: {0: (30, 40, 0)}, 3: {1: (60, 50, 0)}},
        range(2),
    )
    assert torch.allclose(tracks.xy[3:], streamed[3:, :, :2])
    assert tracks.xy[:3, 1].tolist() == [[60, 50]] * 3
    assert not tracks.visibility[:3, 1].any()
    assert torch.equal(tracks.xy[3, 1], queries[1, 1:])


@torch.no_grad()
def test_a_hidden_point_whose_patch_does_not_fit_goes_with_its_companions(
    model, clips, monkeypatch
):
    def shared(xy, *_):
        return torch.full_like(xy, 1.5), torch.ones(xy.shape[:2], dtype=torch.bool)

    monkeypatch.setattr('cotracker_ros.model.realtime.shared_motion', shared)
    step, moved, fits, shown = RealtimeStep(model), [], [], []
    state = step.initial_state(1, 12)
    queries = {n: (10.0 + 9 * n, 20.0 + 5 * n, 0) for n in range(12)}
    for t, frame in enumerate(clips.video[0]):
        model.calibration.bias.data[0] = -0.6 if t > 2 else 50  # about half
        before = state['xy']
        given = inputs(frame[None], 12, queries if t == 0 else (), range(12))
        out, state = step(given, state)
        assert torch.equal(out['xy'], state['xy'])
        moved.append(out['xy'] - before)
        fits.append(state['fit'])
        shown.append(out['visibility'])
    model.calibration.bias.data[0] = 0
    with_companions = (torch.stack(moved) - 1.5).abs().amax(-1)[:, 0] < 1e-4
    fitting = torch.stack(fits)[:, 0] > model.config.query_fit
    visible = torch.stack(shown)[:, 0] > 0.5
    expected = ~fitting[3:] & ~visible[3:]
    assert torch.equal(with_companions[3:], expected) and not with_companions[:3].any()
    for part in (fitting[3:], visible[3:], (visible & ~fitting)[3:], expected):
        assert part.any() and not part.all()


def test_calibration_changes_what_is_shown_and_nothing_else(model, clips):
    plan = {0: {0: (30, 40, 0)}}
    plain = run(RealtimeStep(model), clips.video[0], 1, plan, range(1))
    model.calibration.bias.data[0] = 1
    shown = run(RealtimeStep(model), clips.video[0], 1, plan, range(1))
    model.calibration.bias.data[0] = 0
    assert torch.equal(plain[..., :2], shown[..., :2])
    assert torch.allclose(plain[1:, 0, 2].logit() + 1, shown[1:, 0, 2].logit(), atol=1e-4)


def test_lost_points_do_not_teach_to_call_wrong_places_visible(clips, monkeypatch):
    # What is read of a hidden point and of one that is lost in sight of the camera is alike.
    torch.manual_seed(0)
    model = RealtimeTracker(CONFIG, SIZE).eval()
    shape = 2, 10, 500
    kind = torch.rand(shape)
    held, lost = kind < 0.8, (kind >= 0.8) & (kind < 0.91)  # the rest is hidden
    features = torch.zeros(*shape, model.calibration.in_features)
    features[..., 3] = held.float()
    nothing = torch.zeros(shape)
    record = SimpleNamespace(
        calibration_features=features,
        network=SimpleNamespace(visibility=nothing, confidence=nothing),
        age=torch.ones(shape),
    )
    clips = SimpleNamespace(visible=held | lost, visibility_known=torch.ones(shape).bool())
    error = torch.where(lost, 50.0, 0.5)
    monkeypatch.setattr(objective, 'roll_outs', lambda *_: iter([(clips, record, error)]))
    objective.calibrate(model, [], LossConfig())
    with torch.no_grad():
        shown = model.calibration(features)[..., 0].sigmoid()
    assert shown[held].min() > 0.95
    assert shown[~held].max() < 0.45  # counted in full, 0.55
    assert shown[~held].min() > 0.2


def test_a_lost_point_starts_anew_at_its_best_place_on_a_stream_as_in_training(model, clips):
    frames, start = clips.video[0], clips.query_frame[0]
    plan = {}
    for n, t in enumerate(start.tolist()):
        plan.setdefault(t, {})[n] = (*clips.tracks[0, t, n].tolist(), 0)
    plain = run(RealtimeStep(model), frames, 5, plan, range(5))
    model.redetection.bias.data[0] = 2.0  # all points, in every frame
    streamed = run(RealtimeStep(model), frames, 5, plan, range(5))
    rows = encode_exact(model, clips)
    record = roll_out(model, rows, clips, TeacherForcing.draw(clips, 0.0, (1.0, 1.0), [0, 1]))
    model.redetection.bias.data[0] = 0.0
    after = torch.arange(10)[:, None] > start
    best = record.best[0]
    assert torch.allclose(streamed[..., :2][after], best[after], atol=2e-2)
    assert (streamed - plain)[..., :2][after].abs().max() > 5
    assert torch.allclose(streamed[..., 2][after], torch.tensor(2.0).sigmoid(), atol=1e-4)
    assert torch.allclose(record.motion.xy[0, 1:][after[:-1]], best[:-1][after[:-1]], atol=2e-2)
    assert not record.motion.velocity[0, 1:][after[:-1]].any()


def test_a_patch_that_fits_a_little_moves_a_point_less_far(model, monkeypatch):
    # fit, way of the patch in px, whether the point goes there, whether it counts as held
    cases = [
        (0.8, 7.0, True, True),
        (0.8, 9.0, False, False),
        (0.6, 3.0, True, False),
        (0.6, 5.0, False, False),
        (0.4, 1.0, False, False),
    ]
    fit, way, goes, held = (torch.tensor([column]) for column in zip(*cases, strict=True))
    xy = torch.full((1, len(cases), 2), 20.0)
    there = xy + torch.stack([way, torch.zeros_like(way)], -1)
    points = Points.empty(model, 1, len(cases))
    found = Alignment(torch.stack([there, xy], 2), torch.stack([fit, fit], 2))
    monkeypatch.setattr(model.aligner, 'align', lambda *_: found)
    monkeypatch.setattr(model.aligner, 'deform', lambda *_: points.warp)
    aligned = model.align([], points, xy, xy)
    assert torch.equal(aligned.held, held)
    assert torch.equal(aligned.xy, torch.where(goes[..., None], there, xy))


def test_the_shipped_weights_find_points_again_behind_a_post():
    photographs = pytest.importorskip('skimage.data', reason='its photographs are the picture')
    wide = np.concatenate([photographs.astronaut()[100:420], photographs.coffee()[40:360]], 1)
    frames = np.stack([wide[:, 3 * t : 3 * t + 512] for t in range(60)])  # the camera pans
    frames[10:50, :, 170:340] = wide[::-1, 600:770]  # and a post stands before it for 40 frames
    rng = np.random.default_rng(1)
    start = np.stack([rng.uniform(200, 500, 64), rng.uniform(30, 290, 64)], 1)
    truth = start - np.arange(60)[:, None, None] * [3, 0]
    video = torch.from_numpy(frames).movedim(-1, 1).float()
    model = load_checkpoint(WEIGHTS)
    places = rescale(start, (320, 512), model.image_size)
    queries = torch.tensor(np.concatenate([np.zeros((64, 1)), places], 1), dtype=torch.float32)
    hidden = ((truth[[20, 49], :, 0] > 171) & (truth[[20, 49], :, 0] < 339)).all(0)

    def found():
        xy = rescale(model.track(video, queries).xy.numpy(), model.image_size, (320, 512))
        return (np.linalg.norm(xy - truth, axis=-1) < 8)[:, hidden].mean(1)

    near = found()
    assert near[9] == 1 and near[49] < 0.1  # behind the post all are lost
    assert near[59] > 0.8
    model.redetection.bias.data[0] = -100  # it is redetection that finds most of them
    assert found()[59] < 0.5


def test_calibration_reads_how_far_inside_the_picture_a_point_is(model):
    height, width = SIZE
    xy = torch.tensor([[4.0, 40.0], [width - 1.0, 40.0], [40.0, height + 7.0], [50.0, 24.0]])
    inside = torch.tensor([4.0, 0.0, -8.0, 24.0])
    assert torch.equal(model.inside(xy)[:, 0], (inside / 8).clamp(-2, 2))
    assert torch.equal(model.inside(xy)[:, 1], inside / 32)


@pytest.mark.parametrize('later', [0, 4])
def test_older_weights_see_the_recent_patch_fit_like_the_querys(model, later):
    # Older files weigh how well a recent patch fits, too, and one kind of them has four inputs
    # less: the same answers where it fits like the query's and those inputs are 0.
    rng, width = torch.Generator().manual_seed(0), CONFIG.width
    token = torch.rand(2, width, generator=rng)
    inside, back, believed = (torch.rand(2, n, generator=rng) for n in (2, 3, 4))
    fit, held, similar = (torch.rand(2, n, generator=rng) for n in (1, 1, 3))
    knots = 4 * (fit - 0.7).clamp(min=0), 8 * (fit - 0.9).clamp(min=0)
    recent = 2 * fit, 4 * (fit - 0.8).clamp(min=0)
    was = torch.cat([token, inside, 2 * fit, *knots, *recent, held, similar], 1)
    now = torch.cat([token, inside, 2 * fit, *knots, recent[1], held, similar], 1)
    hints = torch.rand(2, 11, generator=rng)
    believed = believed[:, :later]
    told = torch.cat([token, hints, 2 * fit, 2 * fit, back[:, :1], believed], 1)
    tells = torch.cat([token, hints, 2 * fit, back[:, :1], believed], 1)
    tells = torch.nn.functional.pad(tells, (0, 4 - later))
    expected = model.state_dict()
    older = expected | {
        'calibration.weight': torch.rand(2, was.shape[1], generator=rng),
        'redetection.weight': torch.rand(1, told.shape[1], generator=rng),
    }
    new = upgraded(older, expected)
    for key, before, after in (('calibration', was, now), ('redetection', told, tells)):
        weight = new[f'{key}.weight']
        assert weight.shape == expected[f'{key}.weight'].shape
        assert torch.allclose(after @ weight.T, before @ older[f'{key}.weight'].T, atol=1e-5)


def test_in_older_weights_all_cells_of_a_patch_count_alike(model):
    expected = RealtimeTracker(CONFIG, SIZE).state_dict()
    older = {key: x for key, x in model.state_dict().items() if not key.startswith('aligner.')}
    loaded = RealtimeTracker(CONFIG, SIZE)
    loaded.load_state_dict(upgraded(older, expected))
    patches = 255 * torch.rand(1, 4, 3, 3, 15 * 15)
    shares = loaded.aligner.weights(patches)
    assert torch.equal(shares, shares[:, :1, :1, :1].expand_as(shares))


def test_image_size_must_fit_the_strides():
    with pytest.raises(ValueError, match='multiples of 32'):
        RealtimeTracker(CONFIG, (100, 128))
