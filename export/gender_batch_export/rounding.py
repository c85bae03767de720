"""Weights rounded for the sake of what a convolution gives, not of the weights themselves."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

LARGEST = 127
"""Of an int8 code. Its negative is the smallest: -128 has no counterpart."""

LARGEST_PAIR = 128
"""Of the sum of the codes of two neighbouring input channels. x86 without VNNI multiplies both by uint8 and adds the
products in 16 bits (`vpmaddubsw`): 255 x 128 fits into them, and what is more is cut off."""

ENOUGH = 64
"""Pictures to take products of: each has thousands of positions, and 256 gave the same agreement."""

DAMPING = 0.01
"""Of the mean square of a group's inputs, added to each of their squares, as in the paper."""


def products(convolution: onnx.NodeProto, kernel: tuple[int, ...], inputs: NDArray[np.float32]) -> NDArray[np.float64]:
    """(groups, K, K): of any two of the K values that a group makes an output of, the sum of their products.

    `inputs` (N, C, H, W) is what the convolution is fed with; K is C / groups x height x width of its `kernel`.
    """
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in convolution.attribute}
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    down, across = attributes.get("strides", (1, 1))
    padded = np.pad(inputs, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = sliding_window_view(padded, kernel, axis=(2, 3))[:, :, ::down, ::across]
    groups, outputs = attributes.get("group", 1), windows[:, 0, :, :, 0, 0].size
    values = windows.transpose(1, 4, 5, 0, 2, 3).reshape(groups, -1, outputs)
    return (values @ values.transpose(0, 2, 1)).astype(np.float64)


def ranges(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """(out,): what code LARGEST has to stand for in each channel of the weights (out, in / groups, height, width).

    The largest weight; or more, where that would make neighbours exceed LARGEST_PAIR together.
    """
    largest = np.abs(weights).max(axis=(1, 2, 3))
    pairs = np.abs(weights[:, :-1] + weights[:, 1:]).max(axis=(1, 2, 3), initial=0)
    wide: NDArray[np.float32] = np.maximum(largest, pairs * np.float32(LARGEST / LARGEST_PAIR))
    return wide


def codes(weights: NDArray[np.float32], scales: NDArray[np.float32], sums: NDArray[np.float64]) -> NDArray[np.int8]:
    """The weights (out, in / groups, height, width) as multiples, -127..127, of each output channel's scale (out,).
    Neighbouring input channels have -128..128 together at most.

    One after the other is rounded, and those that are still to come make up for what its error does to the output, as
    far as they can (Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
    Transformers", section 3). `sums` (groups, K, K) of `products` over pictures tell which of the K inputs go together.
    """
    groups, count, _ = sums.shape
    exact = weights.reshape(groups, -1, count).astype(np.float64)
    scale = scales.reshape(groups, -1).astype(np.float64)
    squares = sums.diagonal(axis1=1, axis2=2).mean(axis=1)
    # A channel that is never anything but zero has no inverse without a number of its own.
    damping = np.where(squares > 0, DAMPING * squares, 1.0)
    inverse = np.linalg.inv(sums + damping[:, None, None] * np.eye(count))
    factor = np.linalg.cholesky(inverse).transpose(0, 2, 1)
    rounded = np.empty(exact.shape, np.int8)
    kernel = weights.shape[2] * weights.shape[3]
    for index in range(count):
        neighbour = rounded[..., index - kernel].astype(int) if index >= kernel else 0
        lowest = np.maximum(-LARGEST, -LARGEST_PAIR - neighbour)
        highest = np.minimum(LARGEST, LARGEST_PAIR - neighbour)
        rounded[..., index] = np.clip(np.rint(exact[..., index] / scale), lowest, highest)
        error = (exact[..., index] - rounded[..., index] * scale) / factor[:, None, index, index]
        exact[..., index + 1 :] -= error[..., None] * factor[:, None, index, index + 1 :]
    return rounded.reshape(weights.shape)
