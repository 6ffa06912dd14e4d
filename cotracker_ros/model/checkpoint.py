"""Load the weights of networks, with their licence and provenance, from published or own files."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from cotracker_ros.model.config import PUBLISHED, UNKNOWN, VARIANTS, Origin
from cotracker_ros.model.registry import build_model, shape_of

# Published key -> ours, applied in order.
RENAMES = (
    (r'^fnet\.layer(\d)\.', lambda m: f'encoder.stages.{int(m[1]) - 1}.'),
    (r'^fnet\.', 'encoder.'),
    (r'\.downsample\.0\.', '.shortcut.'),
    (r'^corr_mlp\.', 'update.correlation.mlp.'),
    (r'^norm\.', 'update.norm.'),
    (r'^(ffeat|track_feat)_updater\.0\.', 'update.feature.'),
    (r'^vis_predictor\.0\.', 'update.visibility.'),
    (r'^updateformer\.', 'transformer.'),
    (r'\.virual_tracks$', '.virtual'),
    (r'\.input_transform\.', '.input.'),
    (r'\.time_blocks\.', '.time.'),
    (r'\.space_blocks\.(\d)\.', r'.space.\1.points.'),
    (r'\.space_virtual2point_blocks\.(\d)\.', r'.space.\1.virtual_from_points.'),
    (r'\.space_virtual_blocks\.(\d)\.', r'.space.\1.virtual.'),
    (r'\.space_point2virtual_blocks\.(\d)\.', r'.space.\1.points_from_virtual.'),
    (r'\.(cross_)?attn\.', '.attention.'),
    (r'\.to_(q|kv|out)\.', r'.\1.'),
    (r'\.attention\.proj\.', '.attention.out.'),
    (r'\.flow_head\.', '.head.'),
    (r'^kp_emb$', 'keypoints.table'),
)
COMPUTED = ('time_emb', 'pos_emb')  # tables in the published files that are functions of a shape
ONLINE_FRAMES = 16  # CoTracker 3: a longer time table belongs to the offline network


def load_checkpoint(path: str | Path, image_size: tuple[int, int] | None = None) -> nn.Module:
    """Load a network, in evaluation mode, from a .pth, .pt or .safetensors file.

    The network is what the metadata of `checkpoint_metadata` say. Without them version and window
    are read off the keys and shapes, and what these do not tell, the window and stride of files
    without time tables, off the file name (cotracker_stride_4_wind_8.pth). Its `facts.origin` is
    what the metadata say; files with the keys of the published ones are CC-BY-NC-4.0 without, and
    of others the licence is unknown. `image_size` as for `build_model`.
    Raises FileNotFoundError, or ValueError saying what is wrong with the file.
    """
    path = Path(path)
    state, noted = read_state(path), read_metadata(path)
    published = is_published(state)
    state = model_state(state)
    model = _model_of(state, noted, path, image_size)
    expected = model.state_dict()
    if any(key.startswith('refiner.') for key in state):
        from cotracker_ros.model.realtime import upgraded

        state = upgraded(state, expected)
    if found := misfit({k: v for k, v in state.items() if k not in COMPUTED}, expected):
        raise ValueError(f'{path.name} has keys that do not fit; {found}')
    model.load_state_dict({key: state[key] for key in expected}, strict=True)
    model.origin = origin_of(path, noted, published)
    return model.eval()


def misfit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Tell which keys of a state dict are missing, unexpected or of another shape than `expected`;
    '' where it fits.
    """
    shapes = {
        key: f'{key} {tuple(state[key].shape)}, not {tuple(expected[key].shape)}'
        for key in expected.keys() & state.keys()
        if expected[key].shape != state[key].shape
    }
    problems = {
        'missing': expected.keys() - state.keys(),
        'unexpected': state.keys() - expected.keys(),
        'of another shape': shapes.values(),
    }
    return '; '.join(f'{what}: {_some(keys)}' for what, keys in problems.items() if keys)


def checkpoint_metadata(model: nn.Module, origin: Origin | None = None) -> dict[str, str]:
    """Metadata for a .safetensors file of a model, with which it loads under any name: `model`,
    `shape` (JSON), and the `licence` and `provenance` of its weights, its own unless given.
    """
    origin = origin or model.facts.origin
    return {
        'model': model.facts.name,
        'shape': json.dumps(shape_of(model)),
        'licence': origin.licence,
        'provenance': origin.provenance,
    }


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint (.safetensors, or what torch.load takes), by key, without
    running code from it.

    Raises FileNotFoundError, and ValueError for a file that is damaged or holds anything else.
    """
    if not path.is_file():
        raise FileNotFoundError(f'no checkpoint at {path}')
    try:
        if path.suffix == '.safetensors':
            state = load_file(path)
        else:
            state = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f'{path.name} is no readable checkpoint: it is damaged, or holds more than tensors,'
            ' which is never loaded because it could run code'
        ) from error
    except Exception as error:  # torch raises nearly anything for a file of another kind
        reason = str(error).partition('\n')[0] or type(error).__name__
        raise ValueError(f'{path.name} is no readable checkpoint ({reason})') from error
    state = state.get('model', state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f'{path.name} is no checkpoint: it must be a dictionary of tensors')
    return state


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a .safetensors file; of others there are none."""
    if path.suffix != '.safetensors':
        return {}
    with safe_open(path, 'pt') as file:
        return file.metadata() or {}


def is_published(state: dict[str, Tensor]) -> bool:
    """Tell whether a state dict has the keys of the published files."""
    return any(key.startswith('fnet.') for key in state)


def model_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring a published state dict to our keys; one that has them passes unchanged."""
    if not is_published(state):
        return state
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        for pattern, replacement in RENAMES:
            key = re.sub(pattern, replacement, key)
        if '.qkv.' in key:  # CoTracker 1 keeps queries, keys and values in one
            q, kv = value.tensor_split([len(value) // 3])
            renamed[key.replace('qkv', 'q')], renamed[key.replace('qkv', 'kv')] = q, kv
        else:
            renamed[key] = value
    for kind in ('weight', 'bias'):  # CoTracker 3 keeps its head in two
        extra = renamed.pop(f'transformer.vis_conf_head.{kind}', None)
        key = f'transformer.head.{kind}'
        if extra is not None and key in renamed:
            renamed[key] = torch.cat([renamed[key], extra])
    return renamed


def origin_of(path: Path, noted: dict[str, str], published: bool = False) -> Origin:
    """Read the origin of weights off a file's metadata, else off its kind."""
    usual = PUBLISHED if published else Origin(UNKNOWN, path.name)
    if mixture := mixture_of(path.name):
        usual = replace(usual, provenance=f'{usual.provenance}, by the name of the file {mixture}')
    return Origin(noted.get('licence', usual.licence), noted.get('provenance', usual.provenance))


def mixture_of(file: str) -> str:
    """Tell what a file's name says of the data that weights were trained on: of
    kubrics50_posetrack50_present.pth 'trained on 50 % kubrics, 50 % posetrack, keypoint embedding
    present'; '' for other names. Shares must add up to 100.
    """
    found = re.match(r'((?:[a-z]+\d+_)*[a-z]+\d+)_(present|absent)((?:_[a-z]+)*)(?:[._]|$)', file)
    if found is None:
        return ''
    parts = [re.fullmatch(r'([a-z]+?)(\d+)', part) for part in found[1].split('_')]
    if sum(int(part[2]) for part in parts if part) != 100:
        return ''
    shares = ', '.join(f'{part[2]} % {part[1]}' for part in parts if part)
    words = (found[2] + found[3]).replace('_', ' ')
    return f'trained on {shares}, keypoint embedding {words}'


def _model_of(
    state: dict[str, Tensor], noted: dict[str, str], path: Path, size: tuple[int, int] | None
) -> nn.Module:
    """Build the network that this file, or these keys and shapes, belong to."""
    file = path.name
    if 'model' in noted and 'shape' in noted:
        try:
            return build_model(noted['model'], size, **json.loads(noted['shape']))
        except (TypeError, ValueError) as error:
            raise ValueError(f'{file}: its metadata name no known network: {error}') from error
    if any(key.startswith('refiner.') for key in state):
        from cotracker_ros.model.realtime import encoder_of

        table = state.get('refiner.keypoints.table')
        count = 0 if table is None else len(table)
        return build_model('realtime', size, encoder=encoder_of(state), keypoints=count)
    table = state.get('time_emb')
    window = _named(noted, file, 'window')
    if table is not None and table.ndim == 3:
        window = table.shape[1]
    changes: dict[str, Any] = {'window': window}
    if 'keypoints.table' in state:
        changes['keypoints'] = len(state['keypoints.table'])
    if 'update.correlation.mlp.fc1.weight' in state:
        name = 'cotracker3_offline' if (window or 0) > ONLINE_FRAMES else 'cotracker3_online'
    elif 'transformer.virtual' in state:
        name = 'cotracker2'
    elif 'update.feature.weight' in state:
        name = 'cotracker1'
        changes['stride'] = _named(noted, file, 'stride')
    else:
        raise ValueError(f'{file} is no checkpoint of a known network; it holds {_some(state)}')
    missing = [key for key, value in changes.items() if value is None]
    if missing:
        raise ValueError(
            f'{file}: the {" and ".join(missing)} of this {name} checkpoint cannot be read off the'
            f' file; name the file like {name}_stride_4_wind_{VARIANTS[name].window}{path.suffix}'
        )
    return build_model(name, size, **changes)


def _named(noted: dict[str, str], file: str, what: str) -> int | None:
    """Read 'window' or 'stride' from metadata of older versions, else off a name like wind_8."""
    if noted.get(what, '').isdecimal():
        return int(noted[what])
    word = {'window': 'wind'}.get(what, what)
    found = re.search(rf'{word}_(\d+)', file)
    return int(found[1]) if found else None


def _some(keys: Iterable[str]) -> str:
    """List a few keys."""
    keys = sorted(keys)
    more = f' and {len(keys) - 8} more' if len(keys) > 8 else ''
    return ', '.join(keys[:8]) + more or 'nothing'
