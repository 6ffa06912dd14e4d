"""The measure that weights are chosen by puts trackers in an order that is known beforehand."""

import json
from pathlib import Path

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
        scores[name] = photo, measure.there_and_back(tracker, SHARED / 'video', 0)
    moving = next(name for name in scores if 'lucas' in name.lower())
    still = next(name for name in scores if 'still' in name.lower())
    assert scores[moving][0] > scores[still][0] + 5
    assert scores[still][1] == 0 < scores[moving][1]
    json.dumps(scores)  # as evaluate.py writes them


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match='JPEGImages: not there'):
        measure.selection(BASELINES[next(iter(BASELINES))], tmp_path)
