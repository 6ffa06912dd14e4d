"""What a network states of itself is what everyone acts on: predictors, evaluation, streaming and
exported files, for every version.
"""

import json

import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('safetensors')

from golden_rule import SMALL, published_state, randomise, video  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from cotracker_ros import predictor as predictors  # noqa: E402
from cotracker_ros.engines.metadata import Metadata, parse_metadata  # noqa: E402
from cotracker_ros.engines.torch_engine import TorchEngine, step_metadata  # noqa: E402
from cotracker_ros.model import build_model, load_checkpoint  # noqa: E402
from cotracker_ros.model.checkpoint import checkpoint_metadata  # noqa: E402
from cotracker_ros.model.config import FRESH, PERMISSIVE, UNKNOWN, Origin  # noqa: E402
from cotracker_ros.model.registry import NETWORKS, build_step  # noqa: E402
from cotracker_ros.streaming import StreamingTracker  # noqa: E402
from cotracker_ros.streaming.image import resize  # noqa: E402
from cotracker_ros.visible import VisibleRule  # noqa: E402

SIZE = (64, 96)
# As published, models.md; those of `realtime` are calibrated.
RULES = {
    'cotracker1': ('visibility > 0.9', 'visibility > 0.9', 'ratio'),
    'cotracker2': ('visibility > 0.6', 'visibility > 0.9', 'aligned'),
    'cotracker3_online': ('visibility x confidence > 0.6', 'visibility > 0.9', 'aligned'),
    'cotracker3_offline': ('visibility > 0.9', 'visibility > 0.9', 'aligned'),
    'realtime': ('visibility > 0.5', 'visibility > 0.5', 'edges'),
}


def small(name):
    if name == 'realtime':
        torch.manual_seed(0)
        model = build_model(name, SIZE).eval()
        torch.nn.init.normal_(model.refiner.head[1].weight, std=0.1)  # fresh heads hardly move
        return model
    changes = {**SMALL, 'virtual': 0} if name == 'cotracker1' else SMALL
    return randomise(build_model(name, SIZE, **changes, window=8)).eval()


@pytest.mark.parametrize('name', NETWORKS)
def test_everyone_agrees(name, monkeypatch):
    pytest.importorskip('tqdm')
    from train import trackers

    monkeypatch.setattr(predictors, 'ITERATIONS', 2)
    model = small(name)
    facts = model.facts
    assert (facts.name, str(facts.visible), str(facts.visible_whole), facts.resize) == (
        name, *RULES[name],
    )  # fmt: skip
    frames = video(7, 48, 72)
    queries = np.float32([[0, 20, 30], [0, 60.5, 10.25], [2, 40, 20]])
    after = np.arange(7)[:, None] > queries[:, 0]

    whole = predictors.CoTrackerPredictor(None)
    whole.model = model
    clip = torch.from_numpy(frames).permute(0, 3, 1, 2)[None].float()
    xy, visible = (x[0].numpy() for x in whole(clip, queries=torch.from_numpy(queries)[None]))
    side = whole.support_grid_size if facts.support_grid else 0
    steps = None if facts.causal else 2
    found, seen = trackers.whole_video(model, steps, grid=side)(frames, queries)
    np.testing.assert_allclose(found[after], xy[after], atol=2e-3)
    margin = np.abs(facts_of(model, frames, queries, side, steps) - facts.visible_whole.threshold)
    clear = after & (margin > 1e-4)
    np.testing.assert_array_equal(seen[clear], visible[clear])

    if facts.not_streamable:
        with pytest.raises(ValueError, match='cannot be streamed'):
            build_step(model)
        return
    step = build_step(model)
    said = parse_metadata(json.dumps(step_metadata(model, step)), 'a file')
    assert (said.visible_rule, said.resize) == (facts.visible, facts.resize)
    assert (said.image_size, said.picture_size) == (facts.image_size, facts.picture_size)
    assert (said.licence, said.provenance) == (facts.origin.licence, facts.origin.provenance)
    tracker = StreamingTracker(TorchEngine(step, said, 'cpu', 1, 3, 1))
    shown = {}
    inner = tracker.engine.step
    tracker.engine.step = lambda given: shown.update(inner(given), **given) or shown
    tracker.add_points(queries[:, 1:])
    for t, frame in enumerate(frames):
        tracks = tracker.track(frame, t / 30)
        fitted = predictors.fit_video(clip[0, t : t + 1], facts)[0].permute(1, 2, 0).numpy()
        # A camera image becomes the same picture; OpenCV places pixels to 1/32.
        apart = np.abs(fitted - shown['image'][0].astype(float))
        assert apart.max() <= (0 if facts.causal else 6) and apart.mean() < 0.6
        here = shown['query'] & (shown['query_age'] == 0)  # where a point was put, by definition
        np.testing.assert_array_equal(shown['xy'][here], shown['query_xy'][here])
        assert (shown['visibility'][here] == 1).all() and (shown['confidence'][here] == 1).all()
        assert here.any() == (t == 0)
        if t:
            rule = facts.visible(shown['visibility'], shown['confidence'])[0]
            inside = (tracks.flags & 4) == 0
            assert tracks.visible.tolist() == (rule & inside).tolist()
    if facts.causal:  # then a stream is the whole video
        again, _ = trackers.whole_video(model)(frames, queries * np.float32([0, 1, 1]))
        np.testing.assert_allclose(tracks.xy, again[-1], atol=2e-3)


def facts_of(model, frames, queries, side, steps):
    """Visibility (T, N) that the network gave to what evaluation tracks."""
    from train import trackers

    kept = []
    inner = model.track
    model.track = lambda *a, **k: kept.append(inner(*a, **k)) or kept[-1]
    try:
        trackers.whole_video(model, steps, grid=side)(frames, queries)
    finally:
        del model.track
    return kept[0].visibility[:, : len(queries)].numpy()


@pytest.mark.parametrize('rule', [VisibleRule(0.5), VisibleRule(0.6, True), VisibleRule(0.125)])
def test_a_rule_is_written_and_read(rule):
    assert VisibleRule.parse(str(rule)) == rule
    visibility, confidence = np.array([0.55, 0.45, 0.9]), np.array([0.1, 0.9, 0.8])
    product = visibility * confidence if rule.with_confidence else visibility
    assert rule(visibility, confidence).tolist() == (product > rule.threshold).tolist()
    for text in ('', 'visibility', 'visibility > high', 'confidence > 0.5', f'{rule} '):
        with pytest.raises(ValueError, match='is no rule like'):
            VisibleRule.parse(text)


@pytest.mark.parametrize('name', NETWORKS)
def test_a_file_says_which_network_it_holds_whatever_its_name(name, tmp_path):
    model = small(name)
    model.origin = Origin('CC-BY-4.0', 'somewhere')
    path = tmp_path / 'mine.safetensors'
    save_file(model.state_dict(), path, metadata=checkpoint_metadata(model))
    loaded = load_checkpoint(path, SIZE)
    assert loaded.config == model.config and loaded.facts == model.facts
    assert loaded.facts.origin == Origin('CC-BY-4.0', 'somewhere')
    for wrong in ({'model': 'none'}, {'shape': '{"legs": 3}'}, {'shape': 'round'}):
        save_file(model.state_dict(), path, metadata=checkpoint_metadata(model) | wrong)
        with pytest.raises(ValueError, match=r'mine\.safetensors: its metadata name no known'):
            load_checkpoint(path, SIZE)


def test_origins(tmp_path):
    assert build_model('cotracker3_online', SIZE).facts.origin == FRESH
    published = published_state('cotracker3_online')
    torch.save(published, tmp_path / 'scaled_online.pth')
    save_file(published, tmp_path / 'scaled_online.safetensors')
    for file in ('scaled_online.pth', 'scaled_online.safetensors'):
        assert load_checkpoint(tmp_path / file).facts.origin.licence == 'CC-BY-NC-4.0'
    save_file(small('realtime').state_dict(), tmp_path / 'found.safetensors')
    assert load_checkpoint(tmp_path / 'found.safetensors').facts.origin == Origin(
        UNKNOWN, 'found.safetensors'
    )


@pytest.mark.parametrize('start, data, licence', [
    (PERMISSIVE, PERMISSIVE, PERMISSIVE),
    (PERMISSIVE, 'CC-BY-NC-4.0', 'CC-BY-NC-4.0'),
    ('CC-BY-NC-4.0', PERMISSIVE, 'CC-BY-NC-4.0'),
    ('CC-BY-NC-4.0', 'CC-BY-4.0', 'CC-BY-NC-4.0 AND CC-BY-4.0'),
    ('CC-BY-NC-4.0 AND CC-BY-4.0', 'CC-BY-4.0', 'CC-BY-NC-4.0 AND CC-BY-4.0'),
    (UNKNOWN, PERMISSIVE, UNKNOWN),
])  # fmt: skip
def test_a_licence_is_inherited(start, data, licence):
    told = Origin(start, 'weights of a robot').trained_on(data, 'ten clips')
    assert told.licence == licence
    assert told.provenance == 'ten clips; began as: weights of a robot'
    assert FRESH.trained_on(data, 'ten clips') == Origin(data, 'ten clips')


def test_older_files_have_the_rules_of_their_time():
    values = {
        'format': 2, 'model': 'realtime', 'version': '0', 'height': 8, 'width': 8, 'window': 8,
        'iterations': 1, 'precision': 'fp32', 'licence': '', 'weights_sha256': '',
        'provenance': '',
    }  # fmt: skip
    product = 'visibility x confidence > 0.6'
    for name, rule in (('realtime', 'visibility > 0.5'), ('cotracker2', product)):
        read = parse_metadata(json.dumps(values | {'model': name}), 'a file')
        assert (read.visible, read.resize, read.image_scale) == (rule, 'edges', 1)
        assert isinstance(read, Metadata)


@pytest.mark.parametrize('source', [(48, 72), (150, 201), (256, 384)])
def test_pictures_with_aligned_corners(source):
    """As interpolate(align_corners=True), but that large frames are averaged first."""
    y, x = np.mgrid[: source[0], : source[1]].astype(np.float32)
    waves = 127 + 60 * np.sin(x / 17) + 60 * np.cos(y / 13)
    frame = np.repeat(waves.astype(np.uint8)[..., None], 3, 2)
    got = resize(frame, SIZE, 'aligned')
    want = torch.nn.functional.interpolate(
        torch.from_numpy(frame).permute(2, 0, 1)[None].float(), SIZE, mode='bilinear',
        align_corners=True,
    )[0].permute(1, 2, 0).numpy()  # fmt: skip
    assert got.shape == (*SIZE, 3)
    inner = (slice(2, -2), slice(2, -2))  # the outermost pixels have half their neighbours
    assert np.abs(got.astype(float) - want)[inner].max() < 4
    np.testing.assert_array_equal(resize(frame[..., ::-1], SIZE, 'aligned'), got[..., ::-1])
