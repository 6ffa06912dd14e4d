"""The study of pseudo-labels: what each row is made from, and what its table says."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip('fsspec')
pytest.importorskip('matplotlib')

from test_pseudo_label import run, texture, write_pictures

from train import label_study
from train.data.readers.pseudo_labels import PseudoLabels, name_of
from train.data.videos import find_videos

TEACHERS = ['lucas-kanade', 'dis-flow']
START = 'start.safetensors'


class Commands:
    """In place of the three commands: labels and weights that say what they were made from, scored
    by how many clips that was.
    """

    def __init__(self, refuse=''):
        self.refuse, self.trained, self.measured = refuse, [], []

    def __call__(self, script, *words, fine=(0,)):
        words = list(map(str, words))
        option = dict(pairwise(words))
        output = Path(option['--output'])
        if script == 'pseudo_label.py':
            videos = words[: words.index('--output')]
            used = words[words.index('--teachers') + 1 :]
            lines = [{'id': f'{k:016x}', 'video': video} for k, video in enumerate(videos)]
            for line in lines:
                path = output / name_of('clips', line['id'], '.npz')
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps({**line, 'teachers': used, 'words': words}))
            text = ''.join(json.dumps(line) + '\n' for line in lines)
            (output / 'manifest.jsonl').write_text(text)
            return 2 in fine  # some clips failed
        if script == 'train.py':
            config = yaml.safe_load(Path(option['--config']).read_text())
            self.trained.append((config['start'], config['seed'], config['steps']))
            if self.refuse and self.refuse in config['labels']:
                return False
            output.mkdir()
            (output / 'realtime.safetensors').write_text(str(len(clips_of(config['labels']))))
            return True
        weights = Path(option['--checkpoint'])
        self.measured.append(weights)
        clips = 0 if weights.name == START else int(weights.read_text())
        scores = {'photo': 50 + clips + 10 * int(option['--seeds']), 'selection': 60.0 + clips}
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({'results': {weights.name: {'mean': scores}}}))
        return True


def clips_of(labels):
    return [json.loads(path.read_text()) for path in sorted(Path(labels).rglob('*.npz'))]


@pytest.fixture
def study(tmp_path, monkeypatch):
    for seed in range(4):
        write_pictures(tmp_path / 'videos' / f'texture{seed}', texture(2))
    (tmp_path / 'config.yaml').write_text(yaml.safe_dump({'start': START, 'steps': 1000}))
    words = [
        'label_study.py', tmp_path / 'videos', '--output', tmp_path / 'study', '--dataset',
        'selection', '--data', 'somewhere', '--config', tmp_path / 'config.yaml', '--teachers',
        *TEACHERS, '--seeds', '1', '2', '--rounds', '3', '--steps', '7', '--labelling=--size 128',
    ]  # fmt: skip
    monkeypatch.setattr(sys, 'argv', [str(word) for word in words])
    return tmp_path / 'study'


def test_rows_are_made_from_what_their_titles_say(study, monkeypatch, capsys):
    commands = Commands()
    monkeypatch.setattr(label_study, 'call', commands)
    label_study.main()
    one = study / 'seed 1'
    titles = {path.name for path in one.iterdir()}
    assert titles == {
        'all, round 1', 'all, round 2', 'all, round 3', 'lucas-kanade alone', 'dis-flow alone',
        'all, together', 'all, 1 video', 'all, 2 videos',
    }  # fmt: skip
    # Each round begins with the weights of the one before, and asks them too.
    rounds = [start for start, seed, _ in commands.trained if seed == 1][:3]
    before = [str(one / f'all, round {n}' / 'run' / 'realtime.safetensors') for n in (1, 2)]
    assert rounds == [START, *before]
    assert all(steps == 7 for *_, steps in commands.trained)
    used = {
        'all, round 2': [*TEACHERS, before[0]], 'all, round 3': [*TEACHERS, before[1]],
        'lucas-kanade alone': TEACHERS[:1], 'dis-flow alone': TEACHERS[1:],
    }  # fmt: skip
    many = {'all, 1 video': 1, 'all, 2 videos': 2}
    for title in titles:
        clips = clips_of(one / title / 'labels')
        assert len({clip['video'] for clip in clips}) == many.get(title, 4)
        for clip in clips:
            assert clip['teachers'] == used.get(title, TEACHERS)
            assert ('--together' in clip['words']) == (title == 'all, together')
            assert dict(pairwise(clip['words']))['--size'] == '128'
    capsys.readouterr()
    # All is there: told again, not done again.
    commands = Commands()
    monkeypatch.setattr(label_study, 'call', commands)
    label_study.main()
    assert not commands.trained and not commands.measured
    text = capsys.readouterr().out
    assert '| all, 2 videos | +2.0 ± 0.0 | +2.0 ± 0.0 | 2 |' in text
    assert '| before | 65.0 | 60.0 | 2 |' in text


def test_a_row_that_cannot_be_fine_tuned_is_left_out(study, monkeypatch, capsys):
    monkeypatch.setattr(label_study, 'call', Commands(refuse='together'))
    label_study.main()
    told = capsys.readouterr()
    assert 'all, together, seed 2: cannot be fine-tuned' in told.err
    rows = json.loads((study / 'study.json').read_text())
    assert 'all, together' not in rows and 'all, 2 videos' in rows
    assert (study / 'study.png').stat().st_size > 5000


def test_a_part_of_the_videos_keeps_its_labels(tmp_path):
    videos, labels, part = (tmp_path / name for name in ('videos', 'labels', 'part'))
    for seed in range(3):
        write_pictures(videos / f'texture{seed}', texture(seed=seed))
    assert run(videos, '--output', labels) == 0
    chosen = {video.url for video in find_videos([str(videos)])[0][:2]}
    label_study.take(labels, chosen, part)
    label_study.take(labels, chosen, part)  # what is there stays
    assert {clip.about['video'] for clip in PseudoLabels(part)} == chosen
    for name in PseudoLabels(part).names:
        assert (part / name).read_bytes() == (labels / name).read_bytes()


def test_gains_are_against_the_same_seed():
    rows = {
        'before': {1: {'a': 10.0}, 2: {'a': 20.0}, 3: {'a': 30.0}},
        'row': {1: {'a': 11.0}, 2: {'a': 23.0}, 3: {'a': 35.0}},
        'once': {2: {'a': 19.0}},
    }
    gain, error, seeds = label_study.gains(rows, 'row', 'a')
    assert (gain, seeds) == (3.0, 3) and error == pytest.approx(2 / np.sqrt(3))
    gain, error, seeds = label_study.gains(rows, 'once', 'a')
    assert (gain, seeds) == (-1.0, 1) and np.isnan(error)
    assert '| once | -1.0 | 1 |' in label_study.table(rows)
