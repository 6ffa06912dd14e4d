"""What an exported graph must and must not hold, and its cleaning."""

from collections import Counter
from graphlib import TopologicalSorter

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cotracker_ros.engines.branches import branches, graphs, replace_nodes

OPSET = 18  # TensorRT reads GridSample of opset 20 and above as nearest, silently (TensorRT#4646)


# Of uint8 TensorRT can but cast; quantised files are for the runtimes of CPUs.
TAKE_UINT8 = ('Cast', 'QuantizeLinear', 'DequantizeLinear')


class ExportError(RuntimeError):
    """The exported graph is not what it must be."""


def lint(model: onnx.ModelProto) -> list[str]:
    """Refuse what one of the runtimes gets wrong or has not; returns remarks on what is merely
    odd.

    GridSample must be 4-D and of opset 16 to 19, ScatterND without reduction, nothing float64.
    Raises ExportError naming the nodes.
    """
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    parts = list(graphs(inferred))
    nodes = [node for part in parts for node in part.node]
    values = [v for part in parts for v in (*part.value_info, *part.input, *part.output)]
    types = {v.name: v.type.tensor_type for v in values}
    opset = next(o.version for o in model.opset_import if o.domain in ('', 'ai.onnx'))
    problems = []
    for node in nodes:
        if node.domain not in ('', 'ai.onnx'):
            problems.append(f'{node.name}: {node.domain}.{node.op_type} is not standard')
        if node.op_type == 'GridSample':
            if not 16 <= opset <= 19:
                problems.append(f'{node.name}: GridSample of opset {opset}, not 16 to 19')
            for name in node.input:
                rank = len(types[name].shape.dim) if name in types else 4
                if rank != 4:
                    problems.append(f'{node.name}: GridSample of rank {rank}')
        if node.op_type not in TAKE_UINT8 and any(_is_uint8(types.get(n)) for n in node.input):
            problems.append(f'{node.name}: {node.op_type} of uint8, which TensorRT has not')
        if node.op_type.startswith('Scatter'):
            reduction = _attribute(node, 'reduction')
            if reduction not in (None, b'none'):
                problems.append(f'{node.name}: {node.op_type} with reduction {reduction.decode()}')
    double = [n for n, t in types.items() if t.elem_type == TensorProto.DOUBLE]
    weights = [i for part in parts for i in part.initializer]
    double += [i.name for i in weights if i.data_type == TensorProto.DOUBLE]
    if double:
        problems.append(f'float64: {", ".join(double[:5])}')
    if problems:
        raise ExportError('; '.join(problems))
    count = Counter(n.op_type for n in nodes)
    remarks = [f'{count[op]} {op}' for op in ('Einsum', 'Loop', 'If', 'NonZero') if count[op]]
    return remarks


def cast_first(model: onnx.ModelProto) -> None:
    """Cast a uint8 image before it is transposed: TensorRT does nothing else with uint8."""
    nodes = model.graph.node
    for node in nodes:
        if node.op_type != 'Transpose' or node.input[0] != 'image':
            continue
        users = [n for n in nodes if node.output[0] in n.input]
        if len(users) != 1 or users[0].op_type != 'Cast':
            continue
        cast, (last,) = users[0], users[0].output
        cast.input[0], cast.output[0] = 'image', f'{last}_first'
        node.input[0], node.output[0] = f'{last}_first', last
        order = [n for n in nodes if n is not cast]
        order.insert(order.index(node), cast)
        replace_nodes(model.graph, order)
        del model.graph.value_info[:]
        return


def simplify(model: onnx.ModelProto) -> None:
    """Canonicalise what the exporter writes, in place; the results stay the same.

    GELU gets the order of factors that ONNX Runtime fuses, (0.5 x) (1 + tanh) in place of 0.5 x (1
    + tanh): one pass over the widest tensors instead of eight. Squares by Pow become products.
    Removed are pads by nothing, which copy whole feature maps, and transpositions of weights in
    every step.
    """
    parts = list(graphs(model.graph))
    weights = {i.name: i for part in parts for i in part.initializer}
    made_by = {n.output[0]: n for part in parts for n in part.node}
    renamed = {}
    for graph in parts:
        dropped = []
        for node in graph.node:
            if node.op_type == 'Mul' and (half := made_by.get(node.input[1])) is not None:
                _reorder_gelu(node, half, made_by, weights)
            elif node.op_type == 'Pow' and _scalar(weights, node.input[1]) == 2:
                node.op_type, node.input[1] = 'Mul', node.input[0]
            elif node.op_type == 'Pad' and _is_zero(weights, node.input[1]):
                renamed[node.output[0]] = node.input[0]
                dropped.append(node)
            elif node.op_type == 'Transpose' and node.input[0] in weights:
                value = numpy_helper.to_array(weights[node.input[0]])
                value = np.ascontiguousarray(value.transpose(_attribute(node, 'perm')))
                graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
                dropped.append(node)
        for node in dropped:
            graph.node.remove(node)
    nodes = [node for part in parts for node in part.node]
    for node in nodes:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
    used = {name for node in nodes for name in node.input}
    for graph in parts:
        kept = [i for i in graph.initializer if i.name in used]
        del graph.initializer[:], graph.value_info[:]
        graph.initializer.extend(kept)


def _reorder_gelu(
    last: onnx.NodeProto, half: onnx.NodeProto, made_by: dict, weights: dict
) -> None:
    """x (0.5 (1 + f)) to (0.5 x) (1 + f), for f a tanh or an erf."""
    if half.op_type != 'Mul' or _scalar(weights, half.input[0]) != 0.5:
        return
    one_plus = made_by.get(half.input[1])
    if one_plus is None or one_plus.op_type != 'Add':
        return
    curve = made_by.get(one_plus.input[0])
    if curve is None or curve.op_type not in ('Tanh', 'Erf'):
        return
    half.input[0], half.input[1], last.input[0], last.input[1] = (
        last.input[0],
        half.input[0],
        half.output[0],
        one_plus.output[0],
    )


def _scalar(weights: dict, name: str):
    """Value of a constant of one number, else None."""
    found = weights.get(name)
    return None if found is None or len(found.dims) else numpy_helper.to_array(found).item()


def _is_zero(weights: dict, name: str) -> bool:
    return name in weights and not numpy_helper.to_array(weights[name]).any()


def sort(model: onnx.ModelProto) -> None:
    """Bring the nodes into an order in which each comes after what it and its branches read."""
    nodes = list(model.graph.node)
    made_by = {name: k for k, node in enumerate(nodes) for name in node.output}
    before = {
        k: {
            made_by[name]
            for inner in (node, *(n for part in branches(node) for n in part.node))
            for name in inner.input
            if name in made_by
        }
        for k, node in enumerate(nodes)
    }
    order = TopologicalSorter(before).static_order()
    replace_nodes(model.graph, [nodes[k] for k in order])


def strip(model: onnx.ModelProto) -> None:
    """Remove what an exporter notes about itself: file paths, stack traces, doc strings."""
    del model.metadata_props[:]
    model.doc_string = model.producer_version = ''
    for graph in graphs(model.graph):
        graph.doc_string = ''
        del graph.metadata_props[:]
        values = (*graph.input, *graph.output, *graph.value_info)
        for part in (*graph.node, *values, *graph.initializer):
            part.doc_string = ''
            del part.metadata_props[:]


def operators(model: onnx.ModelProto) -> str:
    """The most frequent operators, for the log."""
    count = Counter(n.op_type for part in graphs(model.graph) for n in part.node)
    most = ', '.join(f'{n} {op}' for op, n in count.most_common(6))
    return f'{count.total()} nodes ({most}, ...)'


def _is_uint8(kind) -> bool:
    return kind is not None and kind.elem_type == TensorProto.UINT8


def _attribute(node: onnx.NodeProto, name: str):
    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return None
