"""The measure that weights are chosen by puts trackers in an order that is known beforehand."""

import json
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


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match='JPEGImages: not there'):
        measure.selection(BASELINES[next(iter(BASELINES))], tmp_path)
