"""The recipe of the shipped weights: stages in order, done once; means of weights."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PATIENCE

torch = pytest.importorskip('torch')
pytest.importorskip('tensorboard')

import yaml  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from train import weights  # noqa: E402

TINY = {
    'objective': 'contrastive', 'workers': 0, 'warmup': 1, 'evaluate': 100, 'ema': 0,
    'shape': {'width': 16, 'heads': 2, 'virtual': 2},
    'scene': {'size': [64, 96], 'frames': 3, 'objects': [1, 2]},
    'batch': {'clips': 1, 'points': 4, 'bank': 1, 'shuffle': True},
}  # fmt: skip


@pytest.fixture
def recipe(tmp_path):
    """Two stages of training and the mean of what they leave."""
    folder, output = tmp_path / 'stages', tmp_path / 'runs'
    folder.mkdir()
    first = output / '1_encoder' / 'encoder.safetensors'
    second = output / '2_longer' / 'encoder.safetensors'
    stages = {
        '1_encoder': {**TINY, 'steps': 1, 'seed': 1},
        '2_longer': {**TINY, 'steps': 1, 'seed': 2, 'encoder_weights': str(first)},
        '3_mean': {'average': {str(first): 3, str(second): 1}},
    }
    for name, values in stages.items():
        (folder / f'{name}.yaml').write_text(yaml.safe_dump(values))
    return folder, output


def test_stages_run_in_order_once_and_the_last_is_published(recipe, tmp_path, capfd):
    folder, output = recipe
    words = [str(folder), '--output', str(output), '--publish', str(tmp_path / 'shipped')]
    assert weights.main([*words, '--time-limit', '0']) == 3
    assert not (tmp_path / 'shipped').exists() and not (output / '2_longer').exists()
    assert weights.main(words) == 0, capfd.readouterr().err
    one, two, mean = (
        load_file(output / name / 'encoder.safetensors')
        for name in ('1_encoder', '2_longer', '3_mean')
    )
    for name, value in load_file(tmp_path / 'shipped').items():
        assert torch.equal(value, mean[name]) and value.dtype == one[name].dtype
        if value.is_floating_point():
            assert torch.allclose(value, 0.75 * one[name] + 0.25 * two[name], atol=1e-6), name
    assert any(not torch.equal(one[name], two[name]) for name in one)
    with safe_open(tmp_path / 'shipped', 'pt') as file:
        told = file.metadata()
    assert told['licence'] == 'Apache-2.0'
    assert told['provenance'].startswith('mean of 75% of (procedural; 1 steps, seed 1) and 25% of')
    assert 'began as: encoder: procedural; 1 steps, seed 1' in told['provenance']

    capfd.readouterr()
    before = (output / '2_longer' / 'encoder.safetensors').stat().st_mtime_ns
    assert weights.main(words) == 0
    assert capfd.readouterr().out.count('done before') == 3
    assert (output / '2_longer' / 'encoder.safetensors').stat().st_mtime_ns == before
    # Another seed for the first stage: what was made is neither kept nor mixed in silence.
    stage = folder / '1_encoder.yaml'
    stage.write_text(yaml.safe_dump({**TINY, 'steps': 1, 'seed': 5}))
    assert weights.main(words) == 1
    assert 'has changed' in capfd.readouterr().err


@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='children are read from /proc')
def test_what_ends_the_recipe_ends_its_training(recipe):
    folder, output = recipe
    endless = {**TINY, 'steps': 10**6, 'seed': 1, 'save': 1}
    (folder / '1_encoder.yaml').write_text(yaml.safe_dump(endless))
    command = [sys.executable, weights.__file__, str(folder), '--output', str(output)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + PATIENCE
        while not (output / '1_encoder/checkpoint.pt').exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        children = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
        assert children
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and 'the same command goes on' in errors
    assert not [child for child in children if Path(f'/proc/{child}').exists()]


def write(path, value, licence='Apache-2.0', model='realtime', name='weight'):
    state = {name: torch.full((2,), value), 'count': torch.tensor(7)}
    about = {'model': model, 'shape': '{}', 'licence': licence, 'provenance': path.stem}
    save_file(state, path, metadata=about)
    return str(path)


def test_a_mean_is_under_all_licences(tmp_path):
    free, bound = write(tmp_path / 'a.st', 1.0), write(tmp_path / 'b.st', 5.0, 'CC-BY-NC-4.0')
    weights.average({free: 1, bound: 3}, tmp_path / 'mean.safetensors')
    mean = load_file(tmp_path / 'mean.safetensors')
    assert mean['weight'].tolist() == [4, 4] and mean['count'] == 7
    with safe_open(tmp_path / 'mean.safetensors', 'pt') as file:
        assert file.metadata() == {
            'model': 'realtime', 'shape': '{}', 'licence': 'CC-BY-NC-4.0',
            'provenance': 'mean of 25% of (a) and 75% of (b)',
        }  # fmt: skip


def test_what_does_not_belong_together_is_refused(tmp_path, capsys):
    one = write(tmp_path / 'a.st', 1.0)
    for other in (
        write(tmp_path / 'b.st', 1.0, model='cotracker2'),
        write(tmp_path / 'c.st', 1.0, name='bias'),
    ):
        with pytest.raises(ValueError, match='another network'):
            weights.average({one: 1, other: 1}, tmp_path / 'mean.safetensors')
    for parts in ({}, {one: 0}, {one: -1, other: 3}):
        with pytest.raises(ValueError, match='positive shares'):
            weights.average(parts, tmp_path / 'mean.safetensors')
    for content, message in (
        (json.dumps({'average': {one: 1}, 'steps': 3}), 'nothing else'),
        ('stepz: 3', 'unknown key stepz'),
        ('start: nowhere.safetensors', 'no weights at nowhere.safetensors'),
    ):
        (tmp_path / 'stage.yaml').write_text(content)
        assert weights.main([str(tmp_path), '--output', str(tmp_path / 'runs')]) == 1
        assert message in capsys.readouterr().err
    assert weights.main([str(tmp_path / 'empty')]) == 1
