"""The tables and figures: every experiment leaves its files, and the page shows them all."""

import json

import cv2
import numpy as np
import pytest

from train import experiments, report, trackers
from train.data.clip import Clip, there_and_back
from train.trackers import dis_flow, standing_still


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """One small clip for every data set, and cheap trackers for every model."""
    rng = np.random.default_rng(0)
    video = np.stack([cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (64, 48))] * 6)
    queries = np.array([[0, 10, 10], [1, 30, 30]], np.float32)
    tracks = np.repeat(queries[None, :, 1:], 6, 0) + np.arange(6)[:, None, None] * 0.5
    clip = Clip('small', video, queries, tracks, np.ones((6, 2), bool))
    monkeypatch.setattr(experiments.readers, 'held_out', lambda path: iter([clip] * 5))
    monkeypatch.setattr(experiments, 'streaming', lambda path: dis_flow)
    monkeypatch.setattr(experiments, 'whole_video', lambda path, *args, **options: standing_still)
    monkeypatch.setattr(experiments, 'BASELINES', {'dis-flow': dis_flow, 'still': standing_still})
    return clip


def run(folder, *words):
    return experiments.main(['--output', str(folder), '--held-out', 'set.npz', *words])


def test_every_experiment_leaves_its_files_and_the_page_shows_them(tmp_path, capsys):
    pytest.importorskip('torch')
    names = ('table', 'support', 'latency', 'window', 'pictures')
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
    assert '| still |' in text and text.count('**Published**, not measured here') == 1
    assert 'no network with random weights stands in' in text
    assert 'scaling' not in text


def test_what_is_there_is_not_measured_again(tmp_path, capsys, monkeypatch):
    assert run(tmp_path, '--only', 'support', '--checkpoint', 'a.pth') == 0
    first = (tmp_path / 'support.json').read_text()
    (tmp_path / 'support.png').unlink()  # drawn again, from what was measured
    with monkeypatch.context() as broken:
        broken.setattr(experiments, 'whole_video', None)
        assert run(tmp_path, '--only', 'support', '--checkpoint', 'a.pth') == 0
    assert 'there already' in capsys.readouterr().out
    assert (tmp_path / 'support.json').read_text() == first and (
        tmp_path / 'support.png'
    ).is_file()
    for words in (['--clips', '2'], ['--clips', '0']):  # other settings: measured
        assert run(tmp_path, '--only', 'support', '--checkpoint', 'a.pth', *words) == 0
        assert (tmp_path / 'support.json').read_text() != first
    path = tmp_path / 'a.pth'
    path.write_bytes(b'new weights')
    before = experiments._fingerprint(path)
    path.write_bytes(b'old weights')
    assert experiments._fingerprint(path) != before
    (tmp_path / 'support.json').write_text('{"half":')  # not to be believed
    assert run(tmp_path, '--only', 'support', '--checkpoint', 'a.pth') == 0
    assert 'results' in json.loads((tmp_path / 'support.json').read_text())


def test_a_cut_memory_is_the_same_until_it_is_full():
    torch = pytest.importorskip('torch')
    from cotracker_ros.model import build_model

    torch.manual_seed(0)
    model = build_model('realtime', (64, 96)).eval()
    torch.nn.init.normal_(model.refiner.head[1].weight, std=0.3)  # fresh heads say next to nothing
    video = torch.randint(0, 256, (4, 3, 64, 96)).float()
    queries = torch.tensor([[0.0, 30, 30], [0, 60, 20]])
    whole = model.track(video, queries)
    assert experiments._with_memory(model, model.config.window) is model
    cut = experiments._with_memory(model, 2).track(video, queries)
    torch.testing.assert_close(cut.visibility[:2], whole.visibility[:2])
    assert not torch.allclose(cut.visibility[2:], whole.visibility[2:])


def test_curves_hold_a_point_for_each_value(tmp_path):
    assert run(tmp_path, '--only', 'support', '--checkpoint', 'a.pth', 'b.pth') == 0
    results = json.loads((tmp_path / 'support.json').read_text())['results']
    assert set(results) == {'a.pth', 'b.pth'}
    assert [row['x'] for row in results['a.pth']] == [side**2 for side in experiments.GRIDS]


def test_latency_of_sliding_networks_is_drawn_in_a_row_of_its_own(tmp_path):
    rows = [
        {
            'x': count, 'frames_late': late, 'mode': mode,
            'TAP-Vid': {'average_jaccard': 50.0 + late + count, 'ms_per_frame': 10.0 * count},
        }
        for mode, late in (('per frame', 0), ('final', 15))
        for count in (1, 4)
    ]  # fmt: skip
    report.draw('latency', {'online.pth': rows[:2]}, tmp_path)
    short = cv2.imread(str(tmp_path / 'latency.png')).shape[0]
    report.draw('latency', {'online.pth': rows}, tmp_path)
    assert cv2.imread(str(tmp_path / 'latency.png')).shape[0] > 1.3 * short
    curves = report._by_lateness({'online.pth': rows})['TAP-Vid: AJ, %']
    assert curves == {
        'online.pth, 1 iterations': [(0, 51), (15, 66)],
        'online.pth, 4 iterations': [(0, 54), (15, 69)],
    }
    assert cv2.imread(str(tmp_path / 'latency_published.png')) is not None


def test_scaling_fits_a_line(tmp_path, monkeypatch):
    class Pool:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def apply(self, _, arguments):
            return 5 + 0.25 * arguments[1], 100.0

    context = type('Context', (), {'Pool': lambda self, _: Pool()})()
    monkeypatch.setattr(experiments.multiprocessing, 'get_context', lambda _: context)
    assert run(tmp_path, '--only', 'scaling', '--streaming', 'm.onnx') == 0
    fit = json.loads((tmp_path / 'scaling.json').read_text())['results']['m.onnx, fit']
    close = {'ms': 5, 'us_per_point': 250, 'mib': 100, 'kib_per_point': 0}
    assert fit == {name: pytest.approx(value, abs=1e-6) for name, value in close.items()}
    assert '| m.onnx | 5.0 | 250.0 | 100.0 |' in (tmp_path / 'README.md').read_text()
    assert cv2.imread(str(tmp_path / 'scaling.png')) is not None


def test_occlusions_of_each_length_are_counted(tmp_path, monkeypatch, small):
    monkeypatch.setattr(experiments, 'OCCLUSIONS', (3, 6))
    monkeypatch.setattr(experiments, 'OCCLUDER_COMES', 2)
    monkeypatch.setattr(experiments, 'JUDGED', 2)
    whole = there_and_back(small)  # 11 frames
    given = []

    def perfect(video, queries):
        given.append(len(video))
        which = [small.queries.tolist().index(query) for query in queries.tolist()]
        return whole.tracks[: len(video), which], whole.visible[: len(video), which]

    monkeypatch.setattr(experiments, 'streaming', lambda path: perfect)
    assert run(tmp_path, '--only', 'occlusion', '--streaming', 'perfect.onnx') == 0
    results = json.loads((tmp_path / 'occlusion.json').read_text())['results']
    assert set(given) == {2 + 3 + 2, 2 + 6 + 2}  # no frame after the last that counts
    shares = {'redetection_recovered': 100, 'redetection_reported': 100}
    for row, seconds in zip(results['perfect.onnx'], (0.1, 0.2), strict=True):
        assert row == {'x': seconds, 'episodes': 5, 'occlusions': shares}
    assert 'Occlusions counted: 5 of 0.1 s' in (tmp_path / 'README.md').read_text()


def test_the_table_tells_the_shipped_model_from_one_that_stands_still(tmp_path, monkeypatch):
    """Nothing is mocked but the data: a texture that moves 3 px a frame."""
    rng = np.random.default_rng(1)
    wide = cv2.resize(rng.integers(0, 256, (24, 40, 3), np.uint8), (400, 240))
    video = np.stack([wide[:, 60 - 3 * t : 380 - 3 * t] for t in range(9)])
    queries = np.array([[0, 80, 60], [0, 200, 150], [2, 120, 200]], np.float32)
    tracks = queries[None, :, 1:] + np.zeros((9, 1, 1), np.float32)
    tracks[..., 0] += 3 * (np.arange(9)[:, None] - queries[:, 0])
    clip = Clip('moving', video, queries, tracks, np.ones((9, 3), bool))
    monkeypatch.setattr(experiments.readers, 'held_out', lambda path: iter([clip]))
    monkeypatch.setattr(experiments, 'streaming', trackers.streaming)
    assert run(tmp_path, '--only', 'table') == 0
    results = json.loads((tmp_path / 'table.json').read_text())['results']
    shipped, still = (
        results[name]['procedural'] for name in ('realtime.onnx, streaming', 'still')
    )
    assert shipped['position_accuracy'] > 60 > 2 * still['position_accuracy']
    assert shipped['average_jaccard'] > 50 > 2 * still['average_jaccard']


def test_one_clear_message(tmp_path, capsys):
    assert experiments.main(['--only', 'table', '--output', str(tmp_path)]) == 1
    assert 'name a data set' in capsys.readouterr().err
    assert experiments.main(['--only', 'pictures', '--output', str(tmp_path)]) == 1
    assert '--held-out' in capsys.readouterr().err
