from pathlib import Path

import pytest

from cotracker_ros.ros import parameters

ROOT = Path(__file__).parents[1]


def test_files_repeat_the_table():
    """`python -m cotracker_ros.ros.parameters` was run after the last change."""
    assert (ROOT / 'config' / 'tracker.yaml').read_text() == parameters.yaml_text()
    readme = (ROOT / 'README.md').read_text()
    assert parameters.insert_table(readme) == readme


def test_yaml_holds_the_defaults():
    yaml = pytest.importorskip('yaml')
    values = yaml.safe_load(parameters.yaml_text())['/**']['ros__parameters']
    expected = {p.name: p.default for p in parameters.TABLE if not isinstance(p.default, tuple)}
    assert values == expected


def test_defaults_are_allowed_and_explained():
    for p in parameters.TABLE:
        assert parameters.clean(p.name, p.default) == p.default
        assert p.text[0].isupper() or ':' in p.text
        assert not p.text.endswith('.')


@pytest.mark.parametrize(
    'name, value, reason',
    [
        ('initial_grid', 2.5, 'must be of type integer, not 2.5'),
        ('initial_grid', True, 'must be of type integer'),
        ('initial_grid', 129, 'must be 0 to 128, not 129'),
        ('age_budget', float('nan'), 'must be finite'),
        ('age_budget', '1', 'must be of type double'),
        ('engine', 'abacus', 'must be one of auto, onnxruntime'),
        ('query_points', [1.0], 'pairs of x and y, not 1 numbers'),
        ('query_points', 'ab', 'must be a list'),
        ('query_points', [1.0, float('inf')], 'must be finite'),
    ],
)
def test_values_that_are_refused(name, value, reason):
    with pytest.raises(ValueError, match=f'{name} .*{reason}'):
        parameters.clean(name, value)


def test_whole_numbers_are_doubles_too():
    assert parameters.clean('age_budget', 1) == 1.0
    assert parameters.clean('query_points', [1, 2]) == (1.0, 2.0)
