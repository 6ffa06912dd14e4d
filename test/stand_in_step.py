"""A stand-in for an exported model: a hand-made ONNX step of a few nodes.

Every point moves one model pixel to the right a frame from where it was queried; visibility is 1;
confidence is the mean of the image, so that tests see which image arrived; in a slot that is
queried it is 1 in the frame of its query and, where that is an older frame, the mean of the image
two frames ago, from a ring of three. The state remembers each point's anchor and age and counts
the frames. With keypoints, the point of keypoint k lies k + 1 model pixels lower.
"""

import json

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper as h

from cotracker_ros.engines import spec

RING = 3
METADATA = {
    'format': 3,
    'model': 'stand_in',
    'version': '0',
    'height': 32,
    'width': 48,
    'image_scale': 1,
    'resize': 'edges',
    'visible': 'visibility x confidence > 0.6',
    'window': 4,
    'iterations': 1,
    'precision': 'fp32',
    'licence': 'Apache-2.0',
    'weights_sha256': '0' * 64,
    'provenance': 'a stand-in for tests',
}


def value_info(tensor: spec.Tensor, picture_size: tuple) -> tuple:
    """Type and dimensions of an input or output of every step."""
    sizes = dict(zip(('height', 'width'), picture_size, strict=True))
    return h.np_dtype_to_tensor_dtype(tensor.dtype), [sizes.get(d, d) for d in tensor.dims]


def step_model(keypoints=False, **metadata) -> onnx.ModelProto:
    """The stand-in; `metadata` replaces values of METADATA."""
    meta = {**METADATA, **metadata}
    b, m = spec.CAMERAS, spec.POINTS
    picture = meta['image_scale'] * meta['height'], meta['image_scale'] * meta['width']
    taken = (*spec.REQUIRED, 'keypoint') if keypoints else spec.REQUIRED
    inputs = {
        **{n: value_info(spec.INPUT[n], picture) for n in taken},
        'state.anchor': (T.FLOAT, [b, m, 2]),
        'state.age': (T.FLOAT, [b, m]),
        'state.count': (T.FLOAT, [b, 1]),
        'state.row': (T.INT64, [1]),
        'state.means': (T.FLOAT, [RING, b, 1]),
    }
    outputs = {
        **{t.name: value_info(t, picture) for t in spec.OUTPUTS},
        'next.anchor': (T.FLOAT, [b, m, 2]),
        'next.age': (T.FLOAT, [b, m]),
        'next.count': (T.FLOAT, [b, 1]),
        'next.row': (T.INT64, [1]),
        'next.means': (T.FLOAT, [1, b, 1]),
    }
    n = h.make_node
    nodes = [
        n('Unsqueeze', ['query', 'last'], ['query2']),
        n('Where', ['query2', 'query_xy', 'state.anchor'], ['next.anchor']),
        n('Cast', ['query_age'], ['late'], to=T.FLOAT),
        n('Add', ['state.age', 'one'], ['older']),
        n('Where', ['query', 'late', 'older'], ['next.age']),
        n('Add', ['state.count', 'one'], ['next.count']),
        n('Unsqueeze', ['next.age', 'last'], ['age2']),
        n('Mul', ['age2', 'right'], ['shift']),
        n('Add', ['next.anchor', 'shift'], ['moved']),
        n('Cast', ['live'], ['visibility'], to=T.FLOAT),
        n('Unsqueeze', ['visibility', 'last'], ['live2']),
        n('Mul', ['moved', 'live2'], ['xy']),
        n('Cast', ['image'], ['pixels'], to=T.FLOAT),
        n('ReduceMean', ['pixels', 'hwc'], ['mean'], keepdims=0),
        n('Div', ['mean', 'white'], ['share']),
        n('Unsqueeze', ['share', 'last'], ['share2']),
        n('Unsqueeze', ['share2', 'first'], ['next.means']),
        n('Add', ['state.row', 'one_row'], ['later']),
        n('Mod', ['later', 'rows'], ['next.row']),
        # Of three rows the one after the newest's is the oldest: two frames ago.
        n('Gather', ['state.means', 'next.row'], ['old_row'], axis=0),
        n('Squeeze', ['old_row', 'first'], ['old_share']),
        n('Where', ['query', 'old_share', 'share2'], ['mean_share']),
        n('Equal', ['late', 'no_age'], ['new']),
        n('And', ['query', 'new'], ['here']),
        n('Where', ['here', 'one', 'mean_share'], ['shown']),
        n('Mul', ['shown', 'visibility'], ['confidence']),
    ]
    if keypoints:
        (move,) = (node for node in nodes if 'moved' in node.output)
        move.output[0] = 'beside'
        at = nodes.index(move) + 1
        nodes[at:at] = [
            n('Cast', ['keypoint'], ['number'], to=T.FLOAT),
            n('Add', ['number', 'one'], ['low']),
            n('Unsqueeze', ['low', 'last'], ['low2']),
            n('Mul', ['low2', 'down'], ['lower']),
            n('Add', ['beside', 'lower'], ['moved']),
        ]
    constants = {
        'last': np.array([-1], np.int64),
        'one': np.array(1, np.float32),
        'no_age': np.array(0, np.float32),
        'right': np.array([1, 0], np.float32),
        'down': np.array([0, 1], np.float32),
        'hwc': np.array([1, 2, 3], np.int64),
        'white': np.array(255, np.float32),
        'first': np.array([0], np.int64),
        'one_row': np.array([1], np.int64),
        'rows': np.array([RING], np.int64),
    }
    graph = h.make_graph(
        nodes,
        'stand_in',
        [h.make_tensor_value_info(k, *v) for k, v in inputs.items()],
        [h.make_tensor_value_info(k, *v) for k, v in outputs.items()],
        [onnx.numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid('', 18)], ir_version=10)
    h.set_model_props(model, {'cotracker_ros': json.dumps(meta)})
    onnx.checker.check_model(model, full_check=True)
    return model


def write(path, **options):
    """Save the stand-in at `path` and return it."""
    onnx.save(step_model(**options), path)
    return path
