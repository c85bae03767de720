"""int8 weights that are rounded for what a convolution gives: against torch's own convolution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from gender_batch_export.rounding import codes, products, ranges


def node(kernel: int, stride: int, padding: int, groups: int) -> Any:
    return onnx.helper.make_node(
        "Conv",
        ["x", "w"],
        ["y"],
        group=groups,
        kernel_shape=[kernel, kernel],
        strides=[stride, stride],
        pads=[padding] * 4,
    )


def smooth(random: np.random.Generator) -> NDArray[np.float32]:
    """(2, 6, 9, 7) of values whose neighbours and channels are alike, as those inside a network are."""
    values = (
        random.normal(size=(2, 1, 1, 1)) + 0.3 * random.normal(size=(2, 6, 1, 1)) + random.normal(size=(2, 6, 9, 7))
    )
    return values.astype(np.float32)


def given_out(inputs: NDArray[np.float32], weights: NDArray[Any], stride: int, padding: int, groups: int) -> Any:
    outputs = torch.nn.functional.conv2d(
        torch.from_numpy(inputs).double(), torch.from_numpy(weights).double(), None, stride, padding, 1, groups
    )
    return outputs.numpy()


@given(
    kernel=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 2]),
    padding=st.sampled_from([0, 1]),
    groups=st.sampled_from([1, 2, 6]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None)
def test_products_tell_how_large_any_output_is(kernel: int, stride: int, padding: int, groups: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    inputs = smooth(random)
    weights = random.normal(size=(6, 6 // groups, kernel, kernel))
    sums = products(node(kernel, stride, padding, groups), (kernel, kernel), inputs)
    each = weights.reshape(groups, 6 // groups, -1)
    squares = np.einsum("gok,gkl,gol->go", each, sums, each).reshape(-1)
    expected = np.square(given_out(inputs, weights, stride, padding, groups)).sum(axis=(0, 2, 3))
    np.testing.assert_allclose(squares, expected, rtol=1e-4, atol=1e-3)


def test_each_side_has_its_own_padding_and_each_direction_its_stride() -> None:
    random = np.random.default_rng(0)
    inputs, weights = smooth(random), random.normal(size=(6, 6, 3, 3))
    top, left, bottom, right = pads = (0, 1, 2, 3)
    convolution = onnx.helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3], strides=[2, 1], pads=pads)
    (sums,) = products(convolution, (3, 3), inputs)
    each = weights.reshape(6, -1)
    padded = torch.nn.functional.pad(torch.from_numpy(inputs).double(), (left, right, top, bottom))
    outputs = torch.nn.functional.conv2d(padded, torch.from_numpy(weights), stride=(2, 1)).numpy()
    np.testing.assert_allclose(np.diag(each @ sums @ each.T), np.square(outputs).sum(axis=(0, 2, 3)), rtol=1e-4)


def test_codes_are_as_far_below_zero_as_above_at_most() -> None:
    weights = np.array([-1, 1, -0.5, 0.5], np.float32).reshape(4, 1, 1, 1)
    rounded = codes(weights, np.full(4, 1 / 200, np.float32), np.ones((1, 1, 1)))
    assert rounded.reshape(-1).tolist() == [-127, 127, -100, 100]


def test_a_code_stands_for_more_where_neighbours_would_be_too_large_together() -> None:
    pairs = [[1, 0.5, 0.1, 0.9], [-1, -1, 0, 0.2], [1, -1, 1, -1], [0.25, 0, 0.3, 0.3], [0, 0, 0, 0]]
    weights = np.array(pairs, np.float32).reshape(5, 4, 1, 1)
    expected = [1.5 * 127 / 128, 2 * 127 / 128, 1, 0.6 * 127 / 128, 0]
    assert ranges(weights) == pytest.approx(expected)
    # Places of a kernel are no neighbours: those of one input channel have none.
    assert ranges(weights.reshape(20, 1, 1, 1)) == pytest.approx(np.abs(weights).reshape(20))
    assert ranges(weights.reshape(5, 1, 2, 2)) == pytest.approx([1, 1, 1, 0.3, 0])
    assert ranges(weights.reshape(5, 2, 2, 1)) == pytest.approx(
        [1.4 * 127 / 128, 1, 2 * 127 / 128, 0.55 * 127 / 128, 0]
    )


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 7, 16]), st.sampled_from([1, 3]), st.booleans())
@settings(deadline=None)
def test_two_neighbours_fit_into_16_bits_with_any_input(seed: int, inputs: int, kernel: int, alike: bool) -> None:
    """As x86 without VNNI adds them up: a sum that is cut off would be wrong there, and right elsewhere."""
    random = np.random.default_rng(seed)
    weights = random.normal(size=(8, inputs, kernel, kernel)).astype(np.float32)
    if alike:  # so that rounding errors push the next ones far
        weights = np.abs(weights).max(axis=1, keepdims=True) * np.ones_like(weights)
    values = random.normal(size=(inputs * kernel**2, 40)) @ np.diag(random.normal(size=40))
    rounded = codes(weights, ranges(weights) / 127, (values @ values.T)[np.newaxis]).astype(int)
    assert np.abs(rounded).max() <= 127
    largest = np.maximum(rounded[:, :-1], 0) + np.maximum(rounded[:, 1:], 0)
    smallest = np.minimum(rounded[:, :-1], 0) + np.minimum(rounded[:, 1:], 0)
    assert (255 * largest <= np.iinfo(np.int16).max).all()
    assert (255 * smallest >= np.iinfo(np.int16).min).all()


@pytest.mark.parametrize("groups", [1, 6])
def test_outputs_come_nearer_than_with_each_weight_rounded_by_itself(groups: int) -> None:
    """By a fifth and more over twenty convolutions. Of a single one nothing is sure: the method is a greedy one."""
    errors = np.zeros(2)
    for seed in range(20):
        random = np.random.default_rng(seed)
        inputs = np.concatenate([smooth(random) for _ in range(8)])
        weights = random.normal(size=(24, 6 // groups, 3, 3)).astype(np.float32)
        scales = (np.abs(weights).max(axis=(1, 2, 3)) / 7).astype(np.float32)  # coarse, so that there is much to win
        rounded = codes(weights, scales, products(node(3, 1, 1, groups), (3, 3), inputs))
        expected = given_out(inputs, weights, 1, 1, groups)
        for way, multiples in enumerate((rounded, np.rint(weights / scales[:, None, None, None]))):
            outputs = given_out(inputs, multiples * scales[:, None, None, None], 1, 1, groups)
            errors[way] += np.square(outputs - expected).sum()
    assert errors[0] < 0.8 * errors[1]


def test_inputs_that_have_nothing_in_common_leave_plain_rounding() -> None:
    weights = np.random.default_rng(0).normal(size=(8, 4, 1, 1)).astype(np.float32)
    scales = np.full(8, 0.02, np.float32)
    rounded = codes(weights, scales, np.diag([1.0, 5.0, 2.0, 0.5])[np.newaxis])
    np.testing.assert_array_equal(rounded, np.clip(np.rint(weights / scales[0]), -127, 127))


def test_channels_that_are_always_zero_do_no_harm() -> None:
    weights = np.random.default_rng(0).normal(size=(4, 1, 3, 3)).astype(np.float32)
    scales = (np.abs(weights).max(axis=(1, 2, 3)) / 127).astype(np.float32)
    rounded = codes(weights, scales, np.zeros((4, 9, 9)))
    np.testing.assert_array_equal(rounded, np.rint(weights / scales[:, None, None, None]))


def test_a_channel_that_is_always_zero_beside_others_does_no_harm() -> None:
    weights = np.random.default_rng(0).normal(size=(4, 3, 1, 1)).astype(np.float32)
    scales = ranges(weights) / 127
    rounded = codes(weights, scales, np.diag([1.0, 0.0, 2.0])[np.newaxis])
    np.testing.assert_array_equal(rounded, np.rint(weights / scales[:, None, None, None]))


def test_each_group_is_rounded_as_if_it_were_alone() -> None:
    """However much smaller its inputs are than another's."""
    random = np.random.default_rng(0)
    weights = random.normal(size=(16, 3, 3, 3)).astype(np.float32)
    scales = (np.abs(weights).max(axis=(1, 2, 3)) / 7).astype(np.float32)
    inputs = smooth(random) * np.array([1, 1, 1, 0.01, 0.01, 0.01], np.float32).reshape(1, 6, 1, 1)
    sums = products(node(3, 1, 1, 2), (3, 3), inputs)
    alone = [codes(weights[part], scales[part], sums[[group]]) for group, part in enumerate((slice(8), slice(8, 16)))]
    np.testing.assert_array_equal(codes(weights, scales, sums), np.concatenate(alone))


def test_what_a_convolution_does_not_say_is_no_padding_every_position_and_one_group() -> None:
    inputs = smooth(np.random.default_rng(0))
    silent = products(onnx.helper.make_node("Conv", ["x", "w"], ["y"]), (3, 3), inputs)
    np.testing.assert_array_equal(silent, products(node(3, 1, 0, 1), (3, 3), inputs))
