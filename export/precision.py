"""Half precision inside an exported graph: TensorRT 11 takes it from nowhere else.

'mixed' computes convolutions and matrix products in half precision and all else in float32. 'fp16'
lets half precision spread from these through operators that only move or combine numbers, as far
as every input is one already: so coordinates, which come from the state, are never rounded, nor is
what amplifies rounding (GridSample, norms, softmax, reductions, sines). Inputs, outputs and state
keep their types. Conditions are gone: these files are for GPUs, which take a step in one go.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cotracker_ros.engines.branches import always_taken

PRODUCTS = {'Conv', 'ConvTranspose', 'MatMul', 'Gemm', 'Einsum'}
HARMLESS = {
    'Add',
    'Sub',
    'Mul',
    'Relu',
    'Erf',
    'Tanh',
    'Sigmoid',
    'Gelu',
    'Reshape',
    'Transpose',
    'Concat',
    'Split',
    'Slice',
    'Gather',
    'Unsqueeze',
    'Squeeze',
    'Expand',
    'Where',
    'Identity',
    'Flatten',
    'AveragePool',
}
HALF = '_half'


def convert(model: onnx.ModelProto, form: str) -> onnx.ModelProto:
    """A copy of a float32 graph in precision `form`, 'mixed' or 'fp16'."""
    model = onnx.shape_inference.infer_shapes(always_taken(model))
    graph = model.graph
    weights = {i.name: i for i in graph.initializer}
    values = [*graph.value_info, *graph.input, *graph.output]
    floats = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    floats |= {n for n, i in weights.items() if i.data_type == TensorProto.FLOAT}
    halved = _half_nodes(graph, floats, set(weights), form)

    nodes, half_made, extra = [], set(), {}
    wanted = {n for k, node in enumerate(graph.node) if k not in halved for n in node.input}
    wanted |= {o.name for o in graph.output}
    for k, node in enumerate(graph.node):
        if k not in halved:
            nodes.append(node)
            continue
        for i, name in enumerate(node.input):
            if name not in floats:
                continue
            if name in weights:
                extra[name + HALF] = _half(weights[name])
            elif name not in half_made:
                nodes.append(_cast(name, name + HALF, TensorProto.FLOAT16))
                half_made.add(name)
            node.input[i] = name + HALF
        nodes.append(node)
        for i, name in enumerate(node.output):
            node.output[i] = name + HALF
            half_made.add(name)
            if name in wanted:
                nodes.append(_cast(name + HALF, name, TensorProto.FLOAT))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    used = {n for node in nodes for n in node.input}
    kept = [i for i in graph.initializer if i.name in used]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *extra.values()])
    return model


def _half_nodes(graph: onnx.GraphProto, floats: set, weights: set, form: str) -> set[int]:
    """Positions of the nodes that compute in half precision."""
    chosen, half = set(), set()
    for k, node in enumerate(graph.node):
        inputs = [n for n in node.input if n in floats]
        grown = (
            form == 'fp16'
            and node.op_type in HARMLESS
            and any(n in half for n in inputs)
            and all(n in half or n in weights for n in inputs)
        )
        if inputs and (node.op_type in PRODUCTS or grown):
            chosen.add(k)
            half.update(node.output)
    return chosen


def _cast(source: str, target: str, kind: int) -> onnx.NodeProto:
    return helper.make_node('Cast', [source], [target], name=f'cast_{target}', to=kind)


def _half(weight: onnx.TensorProto) -> onnx.TensorProto:
    limit = np.finfo(np.float16).max
    value = np.clip(numpy_helper.to_array(weight), -limit, limit).astype(np.float16)
    return numpy_helper.from_array(value, weight.name + HALF)
