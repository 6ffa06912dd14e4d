"""Ablations of poses: what a run begins with, whose points have numbers, and the page."""

import dataclasses
import json
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('tensorboard', reason='trains')

from safetensors.torch import save_file  # noqa: E402
from test_readers import write_posetrack  # noqa: E402

from cotracker_ros.model import build_model  # noqa: E402
from cotracker_ros.model.checkpoint import checkpoint_metadata  # noqa: E402
from cotracker_ros.model.realtime import Estimate  # noqa: E402
from cotracker_ros.skeleton import KEYPOINTS  # noqa: E402
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


def test_an_embedding_begins_fresh_on_weights_that_have_none(tmp_path, capsys):
    begun = written(tmp_path / 'plain.safetensors').state_dict()
    run = run_from(tmp_path / 'plain.safetensors', tmp_path, shape={'keypoints': 17})
    assert 'plain.safetensors knows no keypoints' in capsys.readouterr().err
    state = run.model.state_dict()
    table = state.pop('refiner.keypoints.table')
    assert table.shape == (17, 1, 32) and 0.08 < table.std() < 0.12
    assert state.keys() == begun.keys()
    assert all(torch.equal(state[name], begun[name]) for name in begun)
    assert run.model.config.width == 32  # the shape of the file, but for what is asked for


def test_weights_with_an_embedding_do_not_lose_it_unsaid(tmp_path, capsys):
    model = written(tmp_path / 'told.safetensors', keypoints=17)
    again = run_from(tmp_path / 'told.safetensors', tmp_path).model
    assert not capsys.readouterr().err
    assert torch.equal(again.refiner.keypoints.table, model.refiner.keypoints.table)
    with pytest.raises(ValueError, match='an embedding of 17 keypoints, the shape has none'):
        run_from(tmp_path / 'told.safetensors', tmp_path, shape={'keypoints': 0})
    # Nor does a run that goes on.
    run_from(tmp_path / 'told.safetensors', tmp_path / 'run').save()
    written(tmp_path / 'plain.safetensors')
    table = r'run holds a run of another model; unexpected: refiner\.keypoints\.table'
    with pytest.raises(ValueError, match=table):
        run_from(tmp_path / 'plain.safetensors', tmp_path / 'run')
    shapes = r'of another shape: refiner\.keypoints\.table \(17, 1, 32\), not \(20, 1, 32\)'
    with pytest.raises(ValueError, match=rf'cannot begin with .*told\.safetensors: .*{shapes}'):
        run_from(tmp_path / 'told.safetensors', tmp_path, shape={'keypoints': 20})
    with pytest.raises(ValueError, match='an embedding of 5 keypoints, but a body has 17'):
        run_from('', tmp_path, shape={**FEW, 'keypoints': 5})


def test_a_mixture_with_people_resumes_exactly(tmp_path):
    """Stopped or not it is one run, with an embedding and all losses of bodies."""
    written(tmp_path / 'plain.safetensors')
    values = {
        'sources': {'people': 0.5, 'procedural': 0.5}, 'shape': {'keypoints': 17},
        'loss': {'continuity': 1.0, 'joint_relation': 1.0, 'occlusion_aware': 1.0},
        'batch': {'clips': 1, 'points': 20, 'bank': 2}, 'steps': 4, 'warmup': 0, 'workers': 0,
        'realtime': {'calibration': 0, 'redetection': 0, 'fresh': 1},
    }  # fmt: skip
    begin = str(tmp_path / 'plain.safetensors')

    def go(folder, steps):
        run = run_from(begin, tmp_path / folder, **values)
        done = []
        for clips in islice(run.batches(run.source, run.step), steps):
            done.append((clips.source, clips.keypoint.shape[1], run.update(clips)))
            run.step += 1
        run.save()
        return done, run.model.state_dict()

    straight, want = go('straight', 4)
    halves = [go('halves', 2) for _ in range(2)]
    assert [*halves[0][0], *halves[1][0]] == straight
    got = halves[1][1]
    assert all(torch.equal(got[name], want[name]) for name in want)
    # 17 points on clips of people, 20 on others; bodies are held together on the former alone.
    assert {(source, count) for source, count, _ in straight} == {
        ('people', 17),
        ('procedural', 20),
    }
    for source, _, losses in straight:
        held = losses['joint_relation'], losses['occlusion_aware']
        assert (min(held) > 0) == (source == 'people') and (max(held) > 0) == (source == 'people')


def test_evaluation_asks_for_what_is_known_and_names_it(tmp_path, monkeypatch):
    write_posetrack(tmp_path / 'set', np.random.default_rng(0))
    written(tmp_path / 'plain.safetensors')
    run = run_from(
        tmp_path / 'plain.safetensors', tmp_path, shape={'keypoints': 17}, workers=0, evaluated=1,
        sources={'posetrack': 1.0}, posetrack=str(tmp_path / 'set'),
        scene={'size': list(SIZE), 'frames': 3},
    )  # fmt: skip
    asked, track = [], type(run.model).track

    def told(model, video, queries, **numbers):
        asked.append((len(queries), numbers['keypoints'].tolist()))
        found = track(model, video, queries, **numbers)
        return dataclasses.replace(found, visibility=torch.ones_like(found.visibility))

    scores = []
    monkeypatch.setattr(type(run.model), 'track', told)
    monkeypatch.setattr('train.train.tapvid', lambda *args: scores.append(args) or {'x': 1.0})
    monkeypatch.setattr(run, 'average', SimpleNamespace(module=run.model))
    writer = SimpleNamespace(add_scalar=print, add_image=lambda *args, **more: None)
    assert run.evaluate(writer) == {'x': 1.0}
    assert asked == [(2, [0, 9])]
    _, _, visible, _, seen, _ = scores[0]
    # The wrist is hidden in the second frame, where nobody knows: nothing is claimed there.
    assert visible.T.tolist() == seen.T.tolist() == [[1, 1, 1], [1, 0, 1]]


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
        nobody.instance, counted,
    )  # fmt: skip
    assert all(value == 0 for value in losses.values()) and len(losses) == 3


def test_another_embedding_is_refused():
    with pytest.raises(ValueError, match="embedding is pose or all, not 'some'"):
        mixture(read_config({'embedding': 'some', 'batch': {'bank': 4}}), 1)


def test_variants_are_settings_that_exist():
    for name, about in pose_study.VARIANTS.items():
        config = read_config(about.changes)
        assert (about.embedding == pose_study.ABSENT) == ('keypoints' not in config.shape), name
        assert (about.embedding == pose_study.ALL) == (config.embedding == 'all'), name
        people = 100 * config.sources.get('people', 0) / sum(config.sources.values())
        assert about.mixture == f'{people:.0f}/{100 - people:.0f}'
        assert about.against in (pose_study.START, *pose_study.VARIANTS)


SETTINGS = {'steps': 8, 'size': [96, 160], 'scene': {'frames': 12}}


def results_of(tmp_path, rows):
    """A study of rows of final PCK@0.1 by seed; each began from 50 % everywhere."""
    (tmp_path / 'w').write_bytes(b'weights')
    results = pose_study.Results(tmp_path / 'pose.json', {**SETTINGS, 'start': tmp_path / 'w'})
    half = {data: dict.fromkeys(keys, 50.0) for data, keys in pose_study.MEASURED.items()}
    half[pose_study.PEOPLE] |= {f'pck_0.1/{name}': 60.0 for name in KEYPOINTS}
    half[pose_study.PEOPLE] |= {'pck_0.1/left_wrist': 30.0, 'pck_0.1/right_wrist': 50.0}
    results.start = half
    curve = [{'source': 'people', 'track': 9.0 - n} for n in range(8)]
    for name, finals in rows.items():
        results.rows[name] = {}
        for seed, value in enumerate(finals):
            last = json.loads(json.dumps(half))
            last[pose_study.PEOPLE]['pck_0.1'] = value
            results.rows[name][str(seed)] = {'scores': {'4': half, '8': last}, 'curve': curve}
    return results


def test_the_page_compares_by_seed_and_says_what_chance_explains(tmp_path):
    results = results_of(
        tmp_path,
        {
            'no people': [50, 50, 50],
            'people alone': [60, 70, 80],
            # Always 1 better than without; and in the mean 1 better, but by chance.
            '+ continuity': [61, 71.1, 80.9],
            '+ joint relation': [66, 68, 79],
        },
    )
    gain = results.gain('+ continuity', pose_study.PEOPLE, 'pck_0.1')
    np.testing.assert_allclose(gain, [1, 1.1, 0.9])
    # Student's t by hand: sd 0.1, error 0.0577, 1 / 0.0577 = 17.3 > 4.30; the other 1 / 2.5.
    assert pose_study.significant(gain)
    assert not pose_study.significant(
        results.gain('+ joint relation', pose_study.PEOPLE, 'pck_0.1')
    )
    assert not pose_study.significant(np.array([5.0]))
    text = pose_study.page(results, 'today')
    assert '| PCK @0.05 | PCK @0.1 | PCK @0.2 | OKS | smooth | jitter | OA |' in text
    assert 'means over 3 seeds' in text
    assert (
        'PCK@0.1: share of keypoints within 0.1 of the longer side of the box of the person'
        in text
    )
    assert '| + continuity | 100/0 | absent | 50.0 | 71.0 | 50.0 |' in text
    assert '| + continuity | people alone | +0.0 ± 0.0 | **+1.0 ± 0.1** |' in text
    assert '| + joint relation | people alone | +0.0 ± 0.0 | +1.0 ± 2.5 |' in text
    assert '| people alone | no people | +0.0 ± 0.0 | +20.0 ± 5.8 |' in text
    assert 'paired by seed): 1 of 40 differences, where chance alone would make about 2' in text
    assert '| nose | eye | ear | shoulder | elbow | wrist | hip | knee | ankle |' in text
    assert '| start, not trained | 60.0 | 60.0 | 60.0 | 60.0 | 60.0 | 40.0 | 60.0 |' in text
    assert 'Not run: + occlusion-aware, half and half' in text
    assert (
        '**Published**, not measured here' in text and '| BlazePose Full | 84.1 | 84.5 |' in text
    )
    pose_study.draw(results, tmp_path / 'curves.png')
    assert (tmp_path / 'curves.png').stat().st_size > 10_000


def test_a_study_that_was_stopped_goes_on(tmp_path, monkeypatch):
    """Rows that are done are kept, those of other settings or weights are not."""
    monkeypatch.setattr(pose_study, 'measure', lambda model, *_: {
        data: dict.fromkeys(keys, float(model.refiner.keypoints is not None))
        for data, keys in pose_study.MEASURED.items()
    })  # fmt: skip
    monkeypatch.setattr(pose_study, 'pictures', lambda *_: np.zeros((8, 8, 3), np.uint8))
    names = ('people alone', 'embedding on pose clips')
    few = {name: pose_study.VARIANTS[name] for name in names}
    monkeypatch.setattr(pose_study, 'VARIANTS', few)
    written(tmp_path / 'w.safetensors')
    settings = {
        'start': str(tmp_path / 'w.safetensors'), 'size': list(SIZE), 'steps': 2, 'evaluate': 1,
        'scene': {'size': list(SIZE), 'frames': 4}, 'workers': 0,
        'batch': {'clips': 1, 'points': 20, 'bank': 2},
        'realtime': {'fresh': 0, 'calibration': 0, 'redetection': 0},
    }  # fmt: skip

    def go(stop=None):
        results = pose_study.Results(tmp_path / 'pose.json', settings)
        done = []
        for _ in pose_study.study(results, {'people': []}, [3], tmp_path / 'none'):
            results.save()
            done.append([name for name in results.trained()][-1])
            if len(done) == stop:
                break
        return done, results

    done, _ = go(stop=1)
    assert done == ['people alone']
    done, results = go()
    assert done == ['embedding on pose clips']
    row = results.rows['embedding on pose clips']['3']
    assert list(row['scores']) == ['1', '2'] and len(row['curve']) == 2
    assert results.mean('embedding on pose clips', 'people', 'oks') == 1
    assert results.mean('people alone', 'people', 'oks') == 0
    assert go()[0] == []
    path = tmp_path / 'pose.json'
    assert pose_study.Results(path, settings).rows
    assert not pose_study.Results(path, settings | {'lr': 1e-3}).rows
    written(tmp_path / 'w.safetensors')
    assert not pose_study.Results(path, settings).rows


def test_runs_share_their_batches():
    class Counting(Same):
        made_count = 0

        def batch(self, index):
            self.made_count += 1
            return self.made

    source, made = Counting(clips([-1], [-1])), {}
    one, two = (pose_study.Kept(source, made).batch(3) for _ in range(2))
    assert source.made_count == 1 and one.tracks is two.tracks
    one.source = 'another'  # as a mixture writes it
    assert two.source == '' and np.array_equal(one.keypoint, two.keypoint)
    pose_study.Kept(source, {}).batch(3)  # another seed
    assert source.made_count == 2
