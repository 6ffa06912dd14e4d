"""Build the networks by name, and load their weights from published or own files."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from cotracker_ros.model.config import VARIANTS
from cotracker_ros.model.cotracker import CoTracker

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
)
COMPUTED = ('time_emb', 'pos_emb')  # tables in the published files that are functions of a shape
ONLINE_FRAMES = 16  # CoTracker 3: a longer time table belongs to the offline network


def build_model(name: str, image_size: tuple[int, int] | None = None, **changes: Any) -> nn.Module:
    """Build a network with random weights.

    `name` is cotracker1, cotracker2, cotracker3_online, cotracker3_offline or realtime;
    `image_size` is (H, W) in pixels, by default what the network was made for; `changes` replace
    further fields of the configuration, as window=12. Raises ValueError for an unknown name.
    """
    if image_size is not None:
        changes['image_size'] = tuple(image_size)
    if name == 'realtime':
        from cotracker_ros.model.realtime import build_realtime

        return build_realtime(**changes)
    if name not in VARIANTS:
        raise ValueError(f'unknown model {name!r}; there are {", ".join([*VARIANTS, "realtime"])}')
    return CoTracker(replace(VARIANTS[name], **changes))


def load_checkpoint(path: str | Path, image_size: tuple[int, int] | None = None) -> nn.Module:
    """Load a network, in evaluation mode, from a .pth, .pt or .safetensors file.

    Version and window are read off the keys and shapes. What these do not tell, the window and
    stride of files without time tables, is taken from the metadata `notes` wrote, or from the file
    name (cotracker_stride_4_wind_8.pth). `image_size` as for `build_model`.
    Raises FileNotFoundError, or ValueError saying what is wrong with the file.
    """
    path = Path(path)
    state = model_state(read_state(path))
    model = _model_of(state, path, image_size)
    expected = model.state_dict()
    reshaped = [k for k in expected.keys() & state.keys() if expected[k].shape != state[k].shape]
    problems = {
        'missing': expected.keys() - state.keys(),
        'unexpected': state.keys() - expected.keys() - set(COMPUTED),
        'of another shape': reshaped,
    }
    told = [f'{what}: {_some(keys)}' for what, keys in problems.items() if keys]
    if told:
        raise ValueError(f'{path.name} has keys that do not fit; ' + '; '.join(told))
    model.load_state_dict({key: state[key] for key in expected}, strict=True)
    return model.eval()


def notes(model: nn.Module) -> dict[str, str]:
    """Metadata for a .safetensors file of a model, with which it loads under any name."""
    if not isinstance(model, CoTracker):
        return {}
    return {'window': str(model.config.window), 'stride': str(model.config.stride)}


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint without running code from it."""
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


def model_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring a published state dict to our keys; one that has them passes unchanged."""
    if not any(key.startswith('fnet.') for key in state):
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


def _model_of(state: dict[str, Tensor], path: Path, size: tuple[int, int] | None) -> nn.Module:
    """Build the network that these keys and shapes, and this file, belong to."""
    file = path.name
    if any(key.startswith('refiner.') for key in state):
        return build_model('realtime', size)
    table = state.get('time_emb')
    window = table.shape[1] if table is not None and table.ndim == 3 else _noted(path, 'window')
    changes: dict[str, Any] = {'window': window}
    if 'update.correlation.mlp.fc1.weight' in state:
        name = 'cotracker3_offline' if (window or 0) > ONLINE_FRAMES else 'cotracker3_online'
    elif 'transformer.virtual' in state:
        name = 'cotracker2'
    elif 'update.feature.weight' in state:
        name = 'cotracker1'
        changes['stride'] = _noted(path, 'stride')
    else:
        raise ValueError(f'{file} is no checkpoint of a known network; it holds {_some(state)}')
    untold = [key for key, value in changes.items() if value is None]
    if untold:
        raise ValueError(
            f'{file}: the {" and ".join(untold)} of this {name} checkpoint cannot be told;'
            f' name the file like {name}_stride_4_wind_{VARIANTS[name].window}{Path(file).suffix}'
        )
    return build_model(name, size, **changes)


def _noted(path: Path, what: str) -> int | None:
    """Read 'window' or 'stride' from a file's metadata, else off its name, as in wind_8."""
    if path.suffix == '.safetensors':
        with safe_open(path, 'pt') as file:
            noted = (file.metadata() or {}).get(what, '')
        if noted.isdecimal():
            return int(noted)
    word = {'window': 'wind'}.get(what, what)
    found = re.search(rf'{word}_(\d+)', path.name)
    return int(found[1]) if found else None


def _some(keys: Iterable[str]) -> str:
    """List a few keys."""
    keys = sorted(keys)
    more = f' and {len(keys) - 8} more' if len(keys) > 8 else ''
    return ', '.join(keys[:8]) + more or 'nothing'
