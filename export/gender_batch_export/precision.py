"""Lower precisions of a float32 model file: float16 for GPUs, int8 for CPUs.

Both keep the preparation of the pixels, the head and the softmax in float32, and as many of the first convolutions
as it takes. MobileNetV2's first depthwise convolution, folded with its batch norm, has channels so far apart in
scale that neither format holds them: with the first three convolutions in float32 float16 agrees with the checkpoint
on 99.95% of FairFace instead of 99.5%, int8 on 98.6% instead of 97.9%, and nothing gets slower.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import TENSOR_NAME_QUANT_SUFFIX, add_pre_process_metadata

from gender_batch.model.metadata import KEY
from gender_batch_export.heldout import spread
from gender_batch_export.rounding import ENOUGH, codes, products, ranges

Pictures = NDArray[np.uint8]
"""(N, size, size, 3), RGB."""

_ERRORS_ONLY = 3


class Precision(StrEnum):
    """In what numbers a model file computes. All take uint8 pictures and give float32 probabilities."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


FLOAT_CONVOLUTIONS = {Precision.FP16: (0, 3, 9, 18), Precision.INT8: (3, 9, 18)}
"""How many of the first convolutions stay in float32: tried in this order until the gate is passed.

MobileNetV2's blocks end there: 3 are the stem and block 1, 9 with blocks 2 and 3, 18 with blocks 4 to 6. Never a
single one further in: where a float convolution lies between quantised ones, ONNX Runtime quantises its weights
itself when it opens the file (its optimiser WeightBiasQuantization), with one scale for all channels, which ruins a
depthwise convolution.
"""


def write_fp16(source: Path, target: Path, float_convolutions: int) -> None:
    """Write the float32 model file `source` with float16 weights and activations from that convolution to the head.

    A weight beyond 65,504 becomes infinite: the gate has to notice. The converter that comes with ONNX Runtime is
    not used: where nodes are left out it writes graphs that are not valid, and it rounds float32 results to float16.
    """
    model = onnx.load(source)
    converted = onnx.shape_inference.infer_shapes(model)
    graph = converted.graph
    floats = {value.name for value in graph.value_info if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    start, end = _range(graph, float_convolutions)
    before, inside, after = graph.node[:start], graph.node[start:end], graph.node[end:]
    made_inside = {name for node in inside for name in node.output}

    entering, leaving, weights = {}, {}, {}
    for node in inside:
        for index, name in enumerate(node.input):
            half = f"{name}_fp16"
            if name in constants and constants[name].data_type == onnx.TensorProto.FLOAT:
                weights[half] = _half(constants[name], half)
                node.input[index] = half
            elif name in floats - made_inside:
                entering[half] = onnx.helper.make_node("Cast", [name], [half], half, to=onnx.TensorProto.FLOAT16)
                node.input[index] = half
    for node in after:
        for index, name in enumerate(node.input):
            if name in floats & made_inside:
                whole = f"{name}_fp32"
                leaving[whole] = onnx.helper.make_node("Cast", [name], [whole], whole, to=onnx.TensorProto.FLOAT)
                node.input[index] = whole

    nodes = [*before, *entering.values(), *inside, *leaving.values(), *after]
    used = {name for node in nodes for name in node.input}
    tensors = [tensor for name, tensor in {**constants, **weights}.items() if name in used]
    inputs, outputs = list(graph.input), list(graph.output)
    converted.graph.CopyFrom(onnx.helper.make_graph(nodes, graph.name, inputs, outputs, tensors))
    _save(converted, model, target, Precision.FP16)


def overflows(file: Path, pictures: Iterable[NDArray[np.uint8]]) -> bool:
    """Whether a float16 activation of the model file gets infinite, or no number, on any of the pictures.

    A CPU computes float16 in float32 and leaves out the rounding in between, so that it answers well where a GPU
    would not. A tensor that is an output of the graph is rounded there too.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load(file))
    half = [value for value in model.graph.value_info if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16]
    model.graph.output.extend(half)
    session = _session(model)
    return any(
        not np.isfinite(values).all()
        for feed in _feeds(model, pictures)
        for values in session.run([value.name for value in half], feed)
    )


def _half(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    with np.errstate(over="ignore"):
        values = onnx.numpy_helper.to_array(tensor).astype(np.float16)
    half: onnx.TensorProto = onnx.numpy_helper.from_array(values, name)
    return half


def write_int8(source: Path, target: Path, float_convolutions: int, calibration: Pictures) -> None:
    """Write the float32 model file `source` quantised: static, QDQ, int8 weights per channel, uint8 activations.

    x86 processors without VNNI add up products of uint8 and int8 two at a time, in 16 bits: the weights are such that
    any two fit (`rounding.ranges`), so that the answers are the same with it and without. Weights that took no heed of
    that moved a probability of FairFace by 0.0076 in the mean without it, and these move it by 0.0041.

    An activation's range is the mean of each calibration picture's smallest and largest value: that of all pictures
    together would spend levels on the outliers of the layers that do not end in ReLU6. With the weights rounded for
    what they give, this moved a probability by 0.0038 in the mean instead of 0.0064, and left 99.8% of the labels as
    they were instead of 99.5%.
    """
    model = onnx.load(source)
    start, _ = _range(model.graph, float_convolutions)
    prepared = copy.deepcopy(model)
    # Batch norms are folded, which is what the quantiser would warn about.
    add_pre_process_metadata(prepared)
    quantize_static(
        prepared,
        target,
        _Reader(model, calibration),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Clip"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=[node.name for node in model.graph.node[:start]],
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"CalibMovingAverage": True, "TensorQuantOverrides": _ranges(model, start)},
    )
    quantized = onnx.load(target)
    _round_weights(quantized, model, calibration)
    _correct_bias(quantized, model, calibration)
    _save(quantized, model, target, Precision.INT8)


def _ranges(model: onnx.ModelProto, start: int) -> dict[str, list[dict[str, Any]]]:
    """What the quantiser is told of the weights of each convolution from that node on, channel by channel."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    names = [node.input[1] for node in model.graph.node[start:] if node.op_type == "Conv"]
    return {
        name: [
            {"axis": 0, "rmin": -largest, "rmax": largest}
            for largest in ranges(onnx.numpy_helper.to_array(constants[name]))
        ]
        for name in names
    }


def _round_weights(quantized: onnx.ModelProto, model: onnx.ModelProto, calibration: Pictures) -> None:
    """Round the weights of each convolution anew, so that its error on the calibration pictures is small."""
    constants = {tensor.name: tensor for tensor in quantized.graph.initializer}
    exact = {tensor.name: tensor for tensor in model.graph.initializer}
    # By the name of what each becomes; those that stay in float32 become nothing.
    names = {f"{node.input[1]}{TENSOR_NAME_QUANT_SUFFIX}": node for node in model.graph.node if node.op_type == "Conv"}
    convolutions = {name: node for name, node in names.items() if name in constants}
    weights = {name: onnx.numpy_helper.to_array(exact[node.input[1]]) for name, node in convolutions.items()}
    inputs = list(dict.fromkeys(node.input[0] for node in convolutions.values()))
    session = _showing(model, inputs)
    sums: dict[str, Any] = dict.fromkeys(convolutions, 0)
    for feed in _feeds(model, spread(list(calibration), ENOUGH)):
        values = dict(zip(inputs, session.run(inputs, feed), strict=True))
        for name, node in convolutions.items():
            sums[name] += products(node, weights[name].shape[2:], values[node.input[0]])
    for name, node in convolutions.items():
        scales = onnx.numpy_helper.to_array(constants[f"{node.input[1]}_scale"])
        constants[name].CopyFrom(onnx.numpy_helper.from_array(codes(weights[name], scales, sums[name]), name))


def _correct_bias(quantized: onnx.ModelProto, model: onnx.ModelProto, calibration: Pictures) -> None:
    """Take the mean error of the logits from the head's bias.

    Quantisation does not only add noise, it shifts (Nagel et al. 2019, "Data-Free Quantization Through Weight
    Equalization and Bias Correction", section 4.2). Where the head is in float32 the shift can be taken away exactly:
    agreement on FairFace rises from 98.6% to 99.05%.
    """
    shift = _mean_logits(quantized, calibration) - _mean_logits(model, calibration)
    name = _head(quantized.graph).input[2]
    bias = next(tensor for tensor in quantized.graph.initializer if tensor.name == name)
    corrected = onnx.numpy_helper.to_array(bias) - shift.astype(np.float32)
    bias.CopyFrom(onnx.numpy_helper.from_array(corrected, name))


def _mean_logits(model: onnx.ModelProto, pictures: Pictures) -> NDArray[np.float64]:
    """(classes,): the head's output, averaged over the pictures."""
    logits = _head(model.graph).output[0]
    session = _showing(model, [logits])
    outputs = [session.run([logits], feed)[0] for feed in _feeds(model, pictures)]
    mean: NDArray[np.float64] = np.concatenate(outputs).mean(axis=0, dtype=np.float64)
    return mean


def _showing(model: onnx.ModelProto, names: Sequence[str]) -> Any:
    """A session of the model, whose float32 tensors of these names are outputs, too."""
    opened = copy.deepcopy(model)
    opened.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    return _session(opened)


def _session(model: onnx.ModelProto) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    # Threads that wait for the next inference would hold the cores on which NumPy multiplies between two of them: an
    # int8 file took 8.2 in place of 6.3 s on two cores, and 19 in place of 8 beside other work.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class _Reader:
    """Pictures one by one, as the quantiser asks for them."""

    def __init__(self, model: onnx.ModelProto, pictures: Pictures) -> None:
        self._feeds = _feeds(model, pictures)

    def get_next(self) -> dict[str, Pictures] | None:
        return next(self._feeds, None)


def _feeds(model: onnx.ModelProto, pictures: Iterable[NDArray[np.uint8]]) -> Iterator[dict[str, Pictures]]:
    for picture in pictures:
        yield {model.graph.input[0].name: picture[np.newaxis]}


def _head(graph: onnx.GraphProto) -> onnx.NodeProto:
    head: onnx.NodeProto = next(node for node in graph.node if node.op_type == "Gemm")
    return head


def _range(graph: onnx.GraphProto, float_convolutions: int) -> tuple[int, int]:
    """Which nodes, start and end, may compute in lower precision: those after so many convolutions, up to the head."""
    kinds = [node.op_type for node in graph.node]
    start = [index for index, kind in enumerate(kinds) if kind == "Conv"][float_convolutions]
    return start, kinds.index("Gemm")


def _save(converted: onnx.ModelProto, model: onnx.ModelProto, target: Path, precision: Precision) -> None:
    """With the metadata of the original, in which `training` also tells the precision."""
    properties = {prop.key: prop.value for prop in model.metadata_props}
    metadata: dict[str, Any] = json.loads(properties[KEY])
    metadata["training"] = {**metadata["training"], "precision": precision.value}
    onnx.helper.set_model_props(converted, {KEY: json.dumps(metadata)})
    onnx.checker.check_model(converted, full_check=True)
    onnx.save(converted, target)
