"""The one comparison of engines: not finite, constant and slightly wrong ones are told."""

import math

import numpy as np
import onnx
import pytest
import stand_in_step

from cotracker_ros.engines import EngineError, compare, load

FAULTS = {  # what is done to the positions of a good step: factor and offset
    'nan': (math.nan, 0),
    'infinite': (math.inf, 0),
    'constant': (0, 20),
    'slightly wrong': (1.02, 0),
}


def faulty(model, fault):
    """A step whose positions are wrong in one of the ways of FAULTS."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    last = next(n for n in model.graph.node if 'xy' in n.output)
    last.output[0] = 'right_xy'
    values = dict(zip(('factor', 'offset'), np.float32(FAULTS[fault]), strict=True))
    model.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in values.items())
    model.graph.node.extend(
        [
            onnx.helper.make_node('Mul', ['right_xy', 'factor'], ['scaled_xy']),
            onnx.helper.make_node('Add', ['scaled_xy', 'offset'], ['xy']),
        ]
    )
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture
def want(tmp_path):
    return compare.record(load(stand_in_step.write(tmp_path / 'good.onnx'), slots=6))


def altered(records, change):
    return [change({k: v.copy() for k, v in record.items()}) for record in records]


def test_equal_engines_differ_by_nothing(want):
    found = compare.difference(want, want, 'it')
    assert found.largest == found.mean == {'xy': 0, 'visibility': 0, 'confidence': 0}
    compare.require(found, 'f32', 'onnxruntime', 'it')


@pytest.mark.parametrize('name', ['xy', 'visibility', 'confidence'])
def test_what_is_not_finite_is_told_first(want, name):
    def break_one(record):
        record[name][0, 5] = math.nan  # also in a slot that is not live
        return record

    with pytest.raises(EngineError, match=f'frame 0, gives [12] of .* values of {name} that are '):
        compare.difference(altered(want, break_one), want, 'it')
    with pytest.raises(EngineError, match='the reference of it'):
        compare.difference(want, altered(want, break_one), 'it')


@pytest.mark.parametrize('runtime', ['onnxruntime', 'openvino', 'tensorrt'])
@pytest.mark.parametrize('precision', list(compare.TOLERANCE))
def test_a_constant_engine_is_past_every_tolerance(want, runtime, precision):
    first = want[0]
    found = compare.difference([r | {'xy': first['xy']} for r in want], want, 'it')
    with pytest.raises(EngineError, match=r'it is past the tolerance; .* xy '):
        compare.require(found, precision, runtime, 'it')


@pytest.mark.parametrize('output', ['xy', 'visibility', 'confidence'])
def test_slightly_wrong(want, output):
    """What counts in float32 is the largest difference, in reduced precision the mean."""
    limit = compare.TOLERANCE['f32'][output]

    def shifted(share):
        step = share * limit * (np.array([0.6, 0.8]) if output == 'xy' else 1)
        return altered(want, lambda r: r | {output: np.float32(r[output] - step)})

    inside, outside = (compare.difference(shifted(s), want, 'it') for s in (0.9, 1.1))
    compare.require(inside, 'f32', 'onnxruntime', 'it')
    with pytest.raises(EngineError, match=rf'largest difference: {output} .*allowed') as caught:
        compare.require(outside, 'f32', 'onnxruntime', 'it')
    assert '\n' not in str(caught.value)
    compare.require(outside, 'f32', 'tensorrt', 'it')  # sums in another order
    compare.require(outside, 'mixed', 'onnxruntime', 'it')
    assert f'{output:12}{1.1 * limit:12.2e}' in compare.table(outside, 'f32', 'onnxruntime')
    last = want[:-1] + shifted(1.1)[-1:]  # once is enough
    with pytest.raises(EngineError, match='past the tolerance'):
        compare.require(compare.difference(last, want, 'it'), 'f32', 'onnxruntime', 'it')


def test_differences_that_are_no_numbers_are_past_every_tolerance():
    nothing = dict.fromkeys(('xy', 'visibility', 'confidence'), math.nan)
    for precision in compare.TOLERANCE:
        with pytest.raises(EngineError, match='past the tolerance'):
            compare.require(compare.Difference(nothing, nothing), precision, 'tensorrt', 'it')
    with pytest.raises(EngineError, match="no tolerance for the precision 'int4'"):
        compare.allowed('int4', 'tensorrt')


def test_a_comparison_over_nothing_is_refused(want):
    none = [r | {'live': r['live'] & False} for r in want]
    with pytest.raises(EngineError, match='no live point'):
        compare.difference(none, none, 'it')
    with pytest.raises(ValueError, match='zip'):
        compare.difference(want[:-1], want, 'it')


@pytest.mark.parametrize('fault', ['nan', 'infinite'])
@pytest.mark.parametrize('name', ['onnxruntime', 'openvino'])
def test_a_file_that_gives_no_numbers_is_refused_at_load(name, fault, tmp_path):
    pytest.importorskip(name)
    path = tmp_path / 'bad.onnx'
    onnx.save(faulty(stand_in_step.step_model(), fault), path)
    with pytest.raises(EngineError, match=r'gives values of xy that are not finite'):
        load(path, name)
