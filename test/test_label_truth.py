"""How right labels are: teachers of known faults on scenes of known tracks."""

import cv2
import numpy as np
import pytest

from train import label_truth
from train.data.synthetic.photo_scenes import PhotoSceneConfig, PhotoScenes
from train.teachers import LabelConfig, Labels, Teacher


@pytest.fixture(scope='module')
def clip():
    noise = np.random.default_rng(0).normal(size=(300, 400, 3))
    noise = np.clip(128 + 400 * cv2.GaussianBlur(noise, (0, 0), 3), 0, 255).astype(np.uint8)
    config = PhotoSceneConfig(
        size=(120, 160), frames=8, camera_speed=(0.02, 0.02), still_camera=0.0, late=0.0,
        objects=(2, 2), occluders=0.0, blur=0.0, jpeg=0.0,
    )  # fmt: skip
    return PhotoScenes(config, [noise], seed=3).clip(0, 40)


def test_truth_is_right_and_what_is_off_or_hidden_is_wrong(clip):
    believed = np.ones(clip.visible.shape, np.float32)
    exact = Labels(clip.tracks, clip.visible, believed)
    assert label_truth.shares(clip, exact) == (100, 100)
    off = exact._replace(tracks=clip.tracks + np.array([4, 0]))
    assert label_truth.shares(clip, off) == (100, 0)
    silent = exact._replace(weight=0 * believed)
    found = label_truth.shares(clip, silent)
    assert found[0] == 0 and np.isnan(found[1])
    all_seen = exact._replace(visible=np.ones_like(clip.visible))
    share, right = label_truth.shares(clip, all_seen)
    assert share > 100 and right == pytest.approx(1e4 / share)


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['nowhere'], 'nowhere: no .jpg or .png there'),
        (['.', '--teachers', 'nobody'], "no model 'nobody'"),
    ],
)
def test_one_clear_message(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cv2.imwrite('grey.png', np.full((300, 400, 3), 90, np.uint8))
    with pytest.raises(SystemExit):
        label_truth.main(words)
    assert message in capsys.readouterr().err


def test_filters_leave_less_and_a_teacher_is_asked_once_each_way(clip):
    calls = []

    def stuck(video, queries):
        """Stands still, sees all: it comes back to its query, and looks like something else."""
        calls.append(len(video))
        tracks = np.repeat(queries[None, :, 1:], len(video), 0)
        return tracks, np.ones(tracks.shape[:2], bool)

    teachers = [Teacher('stuck', '', False, stuck)]
    labels = label_truth.labels_of(clip, teachers, LabelConfig())
    assert len(calls) == 2 and ('all, together', label_truth.CORRELATED) not in labels
    none, trip, correlated = (
        label_truth.shares(clip, labels['stuck', name])
        for name in (label_truth.NO_FILTER, label_truth.ROUND_TRIP, label_truth.CORRELATED)
    )
    assert none == trip and none[1] < 50
    assert correlated[0] < 0.6 * trip[0] and correlated[1] > trip[1]
    rows = {('stuck', 'a'): [(50.0, 90.0), (60.0, np.nan)], ('stuck', 'b'): [(1.0, np.nan)]}
    text = label_truth.table(rows)
    assert '| stuck | a | 55.0 ± 5.0 | 90.0 | 2 |' in text
    assert '| stuck | b | 1.0 | none | 1 |' in text
