"""Fine-tuning on pseudo-labels: what is asked of the network, and what stays as it is."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

torch = pytest.importorskip('torch')
pytest.importorskip('tensorboard')

from test_pseudo_label import VELOCITY, texture  # noqa: E402

from cotracker_ros.model import build_model  # noqa: E402
from train import train  # noqa: E402
from train.config import TrainConfig  # noqa: E402
from train.data.batch import BatchConfig, Clips  # noqa: E402
from train.data.readers.pseudo_labels import FORMAT, LabelledClip, name_of, pack  # noqa: E402
from train.data.sources import mixture  # noqa: E402
from train.data.storage import Folder  # noqa: E402
from train.data.synthetic.procedural import SceneConfig  # noqa: E402
from train.losses import LossConfig  # noqa: E402
from train.objectives.base import visibility_rows  # noqa: E402
from train.objectives.realtime import RealtimeRecipe  # noqa: E402
from train.train import Run  # noqa: E402

WINDOWED = {'depth': 1, 'window': 4, 'width': 16, 'heads': 2, 'channels': 10, 'levels': 2}
SHAPES = {
    'realtime': {'features': 8, 'width': 16, 'heads': 2, 'virtual': 2, 'image_scale': 1},
    'cotracker2': WINDOWED,
    'cotracker3_online': WINDOWED,
    'cotracker3_offline': WINDOWED,
}
CONFIG = TrainConfig(
    sources={'pseudo_labels': 1.0}, freeze_visibility=True, steps=10, warmup=0, lr=1e-2,
    weight_decay=0.1, clip=10.0, workers=0,
    scene=SceneConfig(size=(64, 96), frames=4),
    batch=BatchConfig(clips=2, points=6, support=2, bank=1, pace=(1.0, 4.0)),
    loss=LossConfig(visibility=0.0, confidence=0.0),
    realtime=RealtimeRecipe(fresh=2, calibration=0, redetection=0),
)  # fmt: skip


@pytest.fixture
def labels(tmp_path):
    """Clips with true labels, of which half of the points are only known while visible."""
    folder, frames = Folder(str(tmp_path / 'labels')), 20
    for seed in range(3):
        rng, t = np.random.default_rng(seed), np.arange(frames)[:, None, None]
        queries = np.insert(rng.uniform((20, 40), (60, 80), (60, 2)), 0, 0, axis=1)
        tracks = queries[:, 1:] + t * np.array(VELOCITY)
        visible = rng.random((frames, 60)) < 0.8
        visible[0] = True
        weight = np.where(np.arange(60) < 30, visible, True)
        tracks[weight == 0] = 1e4  # whoever learns from these is lost
        about = {
            'format': FORMAT, 'id': f'{seed:016x}', 'video': 'none', 'frames': frames,
            'size': (96, 128), 'teachers': [], 'store': 'jpeg',
        }  # fmt: skip
        clip = LabelledClip(about, texture(frames, seed=seed), queries, tracks, visible, weight)
        folder.write(name_of('clips', about['id'], '.npz'), pack(clip, 90))
    return str(tmp_path / 'labels')


def config_of(network, labels):
    return dataclasses.replace(CONFIG, network=network, shape=SHAPES[network], labels=labels)


def test_labels_are_one_more_source_of_the_mixture(labels):
    config = config_of('realtime', labels)
    one, two = (mixture(config, 3).batch(5) for _ in range(2))
    for name in ('video', 'tracks', 'visible', 'query_frame', 'known'):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert one.source == 'pseudo-labels' and one.video.shape == (2, 4, 64, 96, 3)
    assert not one.known.all() and not one.visible[~one.known].any()
    both = dataclasses.replace(config, sources={'pseudo_labels': 1.0, 'procedural': 1.0})
    assert {mixture(both, 3).batch(i).source for i in range(4)} == {'pseudo-labels', 'procedural'}


@pytest.mark.parametrize('workers', [0, 1])
def test_a_clip_that_cannot_be_read_ends_the_run_with_one_message(
    workers, labels, tmp_path, monkeypatch
):
    for path in Path(labels).rglob('*.npz'):
        path.write_bytes(path.read_bytes()[:-100])
    config = dataclasses.replace(config_of('realtime', labels), workers=workers)
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    (tmp_path / 'run.yaml').write_text(yaml.safe_dump(values))
    words = ['--config', str(tmp_path / 'run.yaml'), '--output', str(tmp_path / 'run')]
    monkeypatch.setattr('sys.argv', ['train.py', *words])
    # It would hold for the whole process, and so for other tests.
    monkeypatch.setattr('torch.set_flush_denormal', lambda on: None)
    with pytest.raises(SystemExit) as end:
        train.main()
    told = str(end.value)
    assert told.startswith('train: step 0: ') and '.npz: not a clip of pseudo-labels' in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize('network', SHAPES)
def test_visibility_stays_as_it_began_and_the_rest_learns(network, labels, tmp_path):
    run = Run(config_of(network, labels), tmp_path / 'run', 'cpu')
    began = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    frozen = [(p, rows, p.detach()[rows].clone()) for p, rows in visibility_rows(run.model)]
    for index in range(2):
        losses = run.update(run.source.batch(index))
        assert np.isfinite(losses['total']) and losses['track'] < 1e3
        run.step += 1
    for parameter, rows, value in frozen:
        assert torch.equal(parameter[rows], value)
    moved = [n for n, p in run.model.named_parameters() if not torch.equal(p, began[n])]
    assert any(n.startswith('encoder.') for n in moved) and len(moved) > 10
    # Without freezing they would have moved, by weight decay if by nothing else.
    free = dataclasses.replace(run.config, freeze_visibility=False)
    run = Run(free, tmp_path / 'free', 'cpu')
    before = [(p, rows, p.detach()[rows].clone()) for p, rows in visibility_rows(run.model)]
    run.update(run.source.batch(0))
    assert not all(torch.equal(p[rows], value) for p, rows, value in before)


def test_the_rows_that_are_frozen_are_those_that_tell_visibility():
    torch.manual_seed(0)
    video, queries = torch.rand(4, 3, 64, 96) * 255, torch.tensor([[0.0, 30, 30], [0, 50, 40]])
    for network in ('cotracker2', 'cotracker3_online'):
        model = build_model(network, (64, 96), **SHAPES[network]).eval()
        plain = model.track(video, queries, 1)
        with torch.no_grad():
            for parameter, rows in visibility_rows(model):
                parameter[rows] += 0.5
        told = model.track(video, queries, 1)
        assert torch.equal(plain.xy, told.xy)  # one window, one iteration
        assert not torch.equal(plain.visibility, told.visibility)


@pytest.mark.parametrize('network', ['realtime', 'cotracker3_online'])
def test_nothing_is_asked_of_support_points(network, labels, tmp_path):
    run = Run(config_of(network, labels), tmp_path / 'run', 'cpu')
    clips = run.source.batch(0)
    more = clips.with_support(2, (64, 96))
    assert more.tracks.shape[2] == clips.tracks.shape[2] + 4
    assert not more.known[:, :, -4:].any() and not more.visible[:, :, -4:].any()
    inside = (more.tracks[..., -4:, :] > 0) & (more.tracks[..., -4:, :] < torch.tensor([96, 64]))
    assert inside.all()
    # Where they are said to go later changes nothing; that they are there does.
    moved = dataclasses.replace(more, tracks=more.tracks.clone())
    moved.tracks[:, 1:, -4:] += 20
    bare = dataclasses.replace(CONFIG.batch, support=0)
    run.objective.config = dataclasses.replace(run.config, batch=bare)
    told = [run.objective(c, 0, 0)['track'].item() for c in (clips, more, moved)]
    assert told[1] == told[2] != told[0]
    run.objective.config = run.config
    assert run.objective(clips, 0, 0)['track'].item() == told[1]


def test_clips_without_support_are_as_they_were():
    clips = Clips(*(torch.zeros(1, 2, 3, 2) for _ in range(4)))
    assert clips.with_support(0, (64, 96)) is clips
