"""Conditions of an ONNX graph, for runtimes that are better off without.

A step that has a condition cannot be recorded as a CUDA graph. In the files of this project the
branch that is taken where a condition is true gives the right answer where it is not, too, and
takes longer: so it may always be taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the branches of its conditions."""
    yield graph
    for node in graph.node:
        yield from branches(node)


def branches(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The branches of a node that is a condition, and of the conditions in these."""
    for attribute in node.attribute:
        if attribute.HasField('g'):
            yield from graphs(attribute.g)


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Give a graph copies of `nodes`, which may be its own, in this order."""
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def always_taken(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without conditions: the branch of true in the place of each."""
    flat = type(model)()
    flat.CopyFrom(model)
    _flatten(flat.graph)
    return flat


def _flatten(graph: onnx.GraphProto) -> None:
    nodes = []
    for node in graph.node:
        if node.op_type != 'If':
            nodes.append(node)
            continue
        branch = next(a.g for a in node.attribute if a.name == 'then_branch')
        _flatten(branch)
        names = {o.name: name for o, name in zip(branch.output, node.output, strict=True)}
        for part in branch.node:
            for side in (part.input, part.output):
                for i, name in enumerate(side):
                    side[i] = names.get(name, name)
            nodes.append(part)
        graph.initializer.extend(branch.initializer)
        graph.value_info.extend(v for v in branch.value_info if v.name not in names)
    replace_nodes(graph, nodes)
