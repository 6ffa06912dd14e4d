"""The golden data's inputs: weights and a video that are functions of names and numbers."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).parent / 'data'
KEYS = json.loads((DATA / 'golden_keys.json').read_text())  # published keys and shapes
FAMILY = tuple(KEYS)
# A shape of these networks in which tests are quick.
SMALL = {'width': 32, 'heads': 4, 'depth': 2, 'virtual': 6, 'channels': 16}


def weight(key, shape, damped=False):
    """The golden weight of a published key; `damped` for CoTracker 1 and 2."""
    w = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if len(shape) > 1:
        w = w / np.sqrt(np.prod(shape[1:]))
    else:
        w = 1 + 0.1 * w if key.endswith('.weight') else 0.1 * w
    if 'flow_head' in key or 'vis_conf_head' in key:
        w = 0.05 * w
    w = w.astype(np.float32)
    if damped and key == 'updateformer.input_transform.weight':
        w[:, 2:130] *= np.float32(1e-3)  # else the displacement encoding amplifies rounding
    return torch.from_numpy(w)


def published_state(name):
    """The golden state dict of a network under its published keys, tables included."""
    damped = name in ('cotracker1', 'cotracker2')
    return {
        key: torch.zeros(shape) if key.endswith('_emb') else weight(key, shape, damped)
        for key, shape in KEYS[name].items()
    }


def randomise(model):
    """Give a network of any size weights by the golden rule, from its own key names."""
    state = {key: weight(key, tuple(value.shape)) for key, value in model.state_dict().items()}
    state['transformer.head.weight'] *= 0.3
    if not model.config.patch_template:
        state['transformer.input.weight'][:, 2:130] *= 1e-3  # as in `weight`
    model.load_state_dict(state)
    return model.eval()


def video(frames=27, height=96, width=128):
    """The golden video (T, H, W, 3) uint8: moving waves under moving noise."""
    t, y, x, c = np.ogrid[:frames, :height, :width, :3]
    noise = np.random.RandomState(1).standard_normal((96, 128, 3))
    waves = 50 * np.sin(0.11 * x + 0.07 * y + 0.9 * c + 0.2 * t)
    waves = waves + 40 * np.sin(0.31 * x - 0.23 * y + 1.7 * c - 0.3 * t)
    grain = 20 * noise[(y + t) % 96, (x + 2 * t) % 128, c]
    return np.clip(np.round(127.5 + waves + grain), 0, 255).astype(np.uint8)
