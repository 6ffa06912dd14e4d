"""Ablations of poses: what a run begins with, whose points have numbers, and the page."""

import json

import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('tensorboard', reason='trains')

from safetensors.torch import save_file  # noqa: E402

from cotracker_ros.model import build_model  # noqa: E402
from cotracker_ros.model.checkpoint import checkpoint_metadata  # noqa: E402
from cotracker_ros.model.realtime import Estimate  # noqa: E402
from train import pose_study  # noqa: E402
from train.config import read_config  # noqa: E402
from train.data.batch import Clips  # noqa: E402
from train.data.sources import Numbered, mixture  # noqa: E402
from train.losses import LossConfig, consistency_losses  # noqa: E402
from train.train import Run  # noqa: E402

FEW = {'encoder': 'pyramid', 'width': 32, 'heads': 2, 'virtual': 4}
SIZE = (64, 96)


def written(path, **changes):
    """A file of a small network with fresh weights."""
    model = build_model('realtime', SIZE, **FEW, **changes)
    save_file(model.state_dict(), path, checkpoint_metadata(model))
    return model


def run_from(path, folder, **values) -> Run:
    scene = {'size': list(SIZE), 'frames': 4}
    return Run(read_config({'start': str(path), 'scene': scene, **values}), folder, 'cpu')


def test_an_embedding_begins_fresh_on_weights_that_have_none(tmp_path):
    begun = written(tmp_path / 'plain.safetensors').state_dict()
    run = run_from(tmp_path / 'plain.safetensors', tmp_path, shape={'keypoints': 17})
    state = run.model.state_dict()
    table = state.pop('refiner.keypoints.table')
    assert table.shape == (17, 1, 32) and 0.08 < table.std() < 0.12
    assert state.keys() == begun.keys()
    assert all(torch.equal(state[name], begun[name]) for name in begun)
    assert run.model.config.width == 32  # the shape of the file, but for what is asked for


def test_weights_with_an_embedding_do_not_lose_it_unsaid(tmp_path):
    model = written(tmp_path / 'told.safetensors', keypoints=17)
    again = run_from(tmp_path / 'told.safetensors', tmp_path).model
    assert torch.equal(again.refiner.keypoints.table, model.refiner.keypoints.table)
    with pytest.raises(ValueError, match='an embedding of 17 keypoints, the shape has none'):
        run_from(tmp_path / 'told.safetensors', tmp_path, shape={'keypoints': 0})
    with pytest.raises(ValueError, match='an embedding of 5 keypoints, but a body has 17'):
        run_from('', tmp_path, shape={**FEW, 'keypoints': 5})


def clips(keypoint, instance) -> Clips:
    count = len(keypoint)
    return Clips(
        torch.zeros(1, 4, 8, 8, 3, dtype=torch.uint8),
        torch.arange(4.0)[None, :, None, None].expand(1, 4, count, 2),
        torch.ones(1, 4, count, dtype=torch.bool),
        torch.zeros(1, count, dtype=torch.int64),
        torch.tensor([keypoint]),
        torch.tensor([instance]),
    )


class Same:
    """A source of one batch."""

    name = 'same'

    def __init__(self, batch):
        self.made = batch

    def batch(self, index):
        return self.made


def test_points_of_all_clips_have_numbers_but_belong_to_nobody():
    given = clips([16, -1, 3, -1], [0, -1, 1, -1])
    found = Numbered(Same(given)).batch(0)
    assert found.keypoint.tolist() == [[16, 1, 3, 3]]
    assert found.instance.tolist() == [[0, -1, 1, -1]]
    assert Numbered(Same(clips([-1] * 20, [-1] * 20))).batch(0).keypoint[0, 16:].tolist() == [
        16, 0, 1, 2,
    ]  # fmt: skip
    # No loss of bodies counts them.
    weights = LossConfig(continuity=1.0, joint_relation=1.0, occlusion_aware=1.0)
    nobody = Numbered(Same(clips([-1] * 17, [-1] * 17))).batch(0)
    logits = torch.randn(1, 4, 17)
    estimate = Estimate(nobody.tracks + torch.randn(1, 4, 17, 2), logits, logits)
    counted = nobody.visible
    losses = consistency_losses(
        [estimate], nobody.tracks, nobody.visible, counted, weights, nobody.keypoint,
        nobody.instance,
    )  # fmt: skip
    assert all(value == 0 for value in losses.values()) and len(losses) == 3


def test_another_embedding_is_refused():
    with pytest.raises(ValueError, match="embedding is pose or all, not 'some'"):
        mixture(read_config({'embedding': 'some', 'batch': {'bank': 4}}), 1)


def test_variants_are_settings_that_exist():
    for name, (_, shares, embedding, changes) in pose_study.VARIANTS.items():
        config = read_config({**changes})
        assert (embedding == 'absent') == ('keypoints' not in config.shape), name
        if shares:
            people = config.sources.get('people', 0) / sum(config.sources.values())
            assert shares.startswith(f'{100 * people:.0f}/')


def test_the_page_says_what_was_not_run_and_what_is_published(tmp_path):
    scores = {
        data: {key: 50.0 + n for n, key in enumerate(keys)}
        for data, keys in pose_study.MEASURED.items()
    }
    curve = [{'source': 'people', 'track': 9.0 - n, 'total': 10.0} for n in range(8)]
    rows = {
        name: {'scores': scores, 'curve': [] if name == pose_study.START else curve}
        for name in (pose_study.START, 'people alone', '+ continuity')
    }
    about = {
        'steps': 8, 'size': [96, 160], 'clips': 3, 'frames': 16, 'date': 'today', 'seconds': 9.0,
        'command': 'make pose', 'chance': pose_study.chance(rows),
    }  # fmt: skip
    text = pose_study.page(json.loads(json.dumps({'rows': rows, 'about': about})))
    assert '| + continuity | 100/0 | absent | 50.0 | 51.0 | 52.0 |' in text
    assert 'Not run: + joint relation' in text and 'no people' in text
    assert (
        '**Published**, not measured here' in text and '| BlazePose Full | 84.1 | 84.5 |' in text
    )
    pose_study.draw(rows, tmp_path / 'curves.png')
    assert (tmp_path / 'curves.png').stat().st_size > 10_000


def test_runs_share_their_batches():
    class Counting(Same):
        made_count = 0

        def batch(self, index):
            self.made_count += 1
            return self.made

    source = Counting(clips([-1], [-1]))
    source.name = 'counted in a test'
    kept = pose_study.Kept(source)
    one, two = kept.batch(3), pose_study.Kept(source).batch(3)
    assert source.made_count == 1 and one.tracks is two.tracks
    one.source = 'another'  # as a mixture writes it
    assert two.source == '' and np.array_equal(one.keypoint, two.keypoint)
