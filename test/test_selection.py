"""The measure that weights are chosen by puts trackers in an order that is known beforehand."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('torch')

from train import selection as measure
from train.data.clip import DataError
from train.trackers import BASELINES

SHARED = Path(__file__).parents[2] / 'shared'


@pytest.mark.skipif(not (SHARED / 'davis').is_dir(), reason='needs DAVIS and the free videos')
def test_a_tracker_is_better_than_standing_still(monkeypatch):
    monkeypatch.setattr(measure, 'RETURNS', 3)
    pictures, cutouts = measure.davis_pictures(SHARED / 'davis')
    scores = {}
    for name, tracker in BASELINES.items():
        photo = measure.jaccard(tracker, measure.photo_clips(pictures, cutouts, 0), 1, 'photo')
        scores[name] = photo, measure.forward_backward(tracker, SHARED / 'video', 0)
    moving = next(name for name in scores if 'lucas' in name.lower())
    still = next(name for name in scores if 'still' in name.lower())
    assert scores[moving][0] > scores[still][0] + 5
    assert scores[still][1] == 0 < scores[moving][1]
    json.dumps(scores)  # as evaluate.py writes them


@pytest.mark.skipif(not (SHARED / 'video').is_dir(), reason='needs the free videos')
def test_a_tracker_that_loses_its_points_brings_none_back(monkeypatch):
    monkeypatch.setattr(measure, 'RETURNS', 2)

    def adrift(video, queries):
        """Goes 19 px to the left and, in 19 more frames, comes back by itself."""
        t = np.arange(len(video))
        way = np.minimum(t, abs(38 - t))
        xy = np.repeat(queries[None, :, 1:], len(video), 0)
        xy[..., 0] -= way[:, None]
        return xy, np.ones(xy.shape[:2], bool)

    assert measure.forward_backward(adrift, SHARED / 'video', 0) == 0


@pytest.mark.skipif(not (SHARED / 'davis').is_dir(), reason='needs DAVIS')
def test_a_point_that_goes_with_the_majority_is_seen_in_company(monkeypatch):
    monkeypatch.setattr(measure, 'MASK_FRAMES', 12)
    clips = list(islice(measure.readers.davis_masks(SHARED / 'davis'), 2))
    monkeypatch.setattr(measure.readers, 'davis_masks', lambda _: clips)
    flow = BASELINES['dis-flow']

    def majority(video, queries):
        xy, visible = flow(video, queries)
        moved = np.median(xy - xy[:1], axis=1, keepdims=True)
        return xy[:1] + moved, visible

    alone, found = {}, {}
    for name, tracker in (('own', flow), ('majority', majority)):
        monkeypatch.setattr(measure, 'GRID', 0)
        alone[name] = measure.on_objects(tracker, SHARED / 'davis')
        monkeypatch.setattr(measure, 'GRID', 20)
        found[name] = measure.on_objects(tracker, SHARED / 'davis')
    assert found['own'] == pytest.approx(alone['own'])
    assert found['majority'] < alone['majority'] - 2


def test_draws_are_averaged_and_masks_which_none_changes_are_measured_once(monkeypatch, tmp_path):
    for name in ('davis/JPEGImages', 'davis/Annotations', 'video'):
        (tmp_path / name).mkdir(parents=True)
    by_seed = {'photo': (60, 70), 'bodies': (50, 40), 'return': (30, 38)}
    monkeypatch.setattr(measure, 'photo_clips', lambda pictures, cutouts, seed: seed)
    monkeypatch.setattr(measure, 'body_clips', lambda pictures, seed: seed)
    monkeypatch.setattr(measure, 'jaccard', lambda _, seed, count, name: by_seed[name][seed])
    monkeypatch.setattr(measure, 'forward_backward', lambda *x: by_seed['return'][x[-1]])
    masks = []
    monkeypatch.setattr(measure, 'on_objects', lambda *_: masks.append(80) or 80)
    tracker = next(iter(BASELINES.values()))
    one = measure.selection(tracker, tmp_path, [1])
    assert one == {'photo': 70, 'bodies': 40, 'masks': 80, 'return': 38, 'selection': 57}
    two = measure.selection(tracker, tmp_path, [0, 1])
    parts = {'photo': 65, 'bodies': 45, 'masks': 80, 'return': 34}
    assert two == parts | {'selection': 56, 'least': 55, 'largest': 57}
    assert len(masks) == 2


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match='JPEGImages: not there'):
        measure.selection(BASELINES[next(iter(BASELINES))], tmp_path)
