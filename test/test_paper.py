"""The tables and figures: every experiment leaves its files, and the page shows them all."""

import json

import cv2
import numpy as np
import pytest

from train import paper
from train.baselines import dis_flow, standing_still
from train.datasets import Clip


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """One small clip for every data set, and cheap trackers for every model."""
    rng = np.random.default_rng(0)
    video = np.stack([cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (64, 48))] * 6)
    queries = np.array([[0, 10, 10], [1, 40, 30]], np.float32)
    tracks = np.repeat(queries[None, :, 1:], 6, 0) + np.arange(6)[:, None, None] * 0.5
    clip = Clip('small', video, queries, tracks, np.ones((6, 2), bool))
    monkeypatch.setattr(paper.datasets, 'held_out', lambda path: iter([clip] * 5))
    monkeypatch.setattr(paper, 'streaming', lambda path: dis_flow)
    monkeypatch.setattr(paper, 'whole_video', lambda path, *args, **options: standing_still)
    monkeypatch.setattr(paper, 'BASELINES', {'dis-flow': dis_flow, 'still': standing_still})
    return clip


def run(folder, *words):
    return paper.main(['--output', str(folder), '--held-out', 'set.npz', *words])


def test_every_experiment_leaves_its_files_and_the_page_shows_them(tmp_path, capsys):
    names = ('table', 'support', 'iterations', 'pictures')
    for name in names:  # one at a time: the page is made of all there are
        assert run(tmp_path, '--only', name) == 0, capsys.readouterr().err
    text = (tmp_path / 'README.md').read_text()
    for name in names:
        about = json.loads((tmp_path / f'{name}.json').read_text())['about']
        assert f'--only {name}' in about['command'] and about['machine'] in text
        if name != 'table':
            picture = cv2.imread(str(tmp_path / f'{name}.png'))
            assert picture is not None and picture.std() > 1
            assert f'({name}.png)' in text
    assert '| still |' in text and 'not measured here' in text
    assert 'scaling' not in text


def test_curves_hold_a_point_for_each_value(tmp_path):
    assert run(tmp_path, '--only', 'support', '--checkpoint', 'a.pth', 'b.pth') == 0
    results = json.loads((tmp_path / 'support.json').read_text())['results']
    assert set(results) == {'a.pth', 'b.pth'}
    assert [row['x'] for row in results['a.pth']] == [side**2 for side in paper.GRIDS]


def test_scaling_fits_a_line(tmp_path, monkeypatch):
    class Pool:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def apply(self, _, arguments):
            return 5 + 0.25 * arguments[1], 100.0

    context = type('Context', (), {'Pool': lambda self, _: Pool()})()
    monkeypatch.setattr(paper.multiprocessing, 'get_context', lambda _: context)
    assert run(tmp_path, '--only', 'scaling', '--streaming', 'm.onnx') == 0
    fit = json.loads((tmp_path / 'scaling.json').read_text())['results']['m.onnx, fit']
    assert fit == {'ms': pytest.approx(5), 'us_per_point': pytest.approx(250)}
    assert '| m.onnx | 5.0 | 250.0 |' in (tmp_path / 'README.md').read_text()


def test_occlusions_of_each_length_are_counted(tmp_path, monkeypatch, small):
    monkeypatch.setattr(paper, 'OCCLUSIONS', (2,))
    monkeypatch.setattr(paper, 'OCCLUDER_COMES', 2)
    monkeypatch.setattr(
        paper, 'streaming', lambda path: lambda *_: (small.tracks, small.visible)
    )
    assert run(tmp_path, '--only', 'occlusion', '--streaming', 'perfect.onnx') == 0
    results = json.loads((tmp_path / 'occlusion.json').read_text())['results']
    (row,) = results['perfect.onnx']
    shares = {'redetection_recovered': 100, 'redetection_reported': 100}
    assert row == {'x': 2, 'episodes': 5, 'occlusions': shares}


def test_one_clear_message(tmp_path, capsys):
    assert paper.main(['--only', 'table', '--output', str(tmp_path)]) == 1
    assert 'name a data set' in capsys.readouterr().err
    assert paper.main(['--only', 'pictures', '--output', str(tmp_path)]) == 1
    assert '--held-out' in capsys.readouterr().err
