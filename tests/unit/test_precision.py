"""Lower precisions of a little graph; their gate, at its limits; and how held-out pictures are shared out."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from installed import REPOSITORY
from numpy.typing import NDArray
from PIL import Image

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from gender_batch_export.export import place
from gender_batch_export.heldout import JUDGED, LEAST_JUDGED, HeldOutError, held_out, spread
from gender_batch_export.parity import CONFIDENT, LIMITS, Limits, Parity, agreement
from gender_batch_export.precision import Precision, overflows, write_fp16, write_int8

from gender_batch.model.metadata import KEY
from gender_batch.pictures.preprocessing import Preprocessing
from gender_batch.training.run import PICTURES

FP16, INT8 = LIMITS[Precision.FP16], LIMITS[Precision.INT8]


def answers(confidence: float, count: int) -> NDArray[np.float32]:
    """All of class 0, with this probability."""
    return np.tile(np.array([[confidence, 1 - confidence]], np.float32), (count, 1))


def flipped(probabilities: NDArray[np.float32], *rows: int) -> NDArray[np.float32]:
    """The same, with the classes of these rows exchanged."""
    result = probabilities.copy()
    for row in rows:
        result[row] = result[row, ::-1]
    return result


@pytest.mark.parametrize(("changed", "passes"), [(0, True), (1, True), (2, False)])
def test_float16_agrees_on_999_of_1000(changed: int, passes: bool) -> None:
    expected = answers(0.6, 1000)
    assert agreement(flipped(expected, *range(changed)), expected, [0] * 1000, FP16).passed is passes


@pytest.mark.parametrize(("changed", "passes"), [(30, True), (32, False)])
def test_int8_agrees_on_1970_of_2000(changed: int, passes: bool) -> None:
    """Half of the changes are for the better, so that accuracy stays."""
    expected = answers(0.6, 2000)
    truth = [int(row < changed // 2) for row in range(2000)]
    assert agreement(flipped(expected, *range(changed)), expected, truth, INT8).passed is passes


@pytest.mark.parametrize(("wrong", "passes"), [(6, True), (7, False)])
def test_int8_keeps_its_accuracy_within_six_of_2000(wrong: int, passes: bool) -> None:
    expected = answers(0.6, 2000)
    worse = agreement(flipped(expected, *range(wrong)), expected, [0] * 2000, INT8)
    better = agreement(flipped(expected, *range(wrong)), expected, [1] * 2000, INT8)
    assert worse.passed is better.passed is passes


@pytest.mark.parametrize(("confident", "passes"), [(2, True), (4, False)])
def test_int8_agrees_on_998_of_1000_sure_ones(confident: int, passes: bool) -> None:
    expected = np.concatenate([answers(0.8, 1000), answers(0.79, 1000)])
    truth = [int(row < confident // 2) for row in range(2000)]
    served = flipped(expected, *range(confident), 1000, 1001)
    truth[1000] = 1
    assert agreement(served, expected, truth, INT8).passed is passes


@pytest.mark.parametrize(
    ("parity", "passes"),
    [
        (Parity(10, 1e-4, 1e-6, 0), True),
        (Parity(10, 1.01e-4, 1e-6, 0), False),
        (Parity(10, 1e-6, 1e-6, 1), False),
        (Parity(10, math.nan, math.nan, 0), False),
        (Parity(0, 0.0, 0.0, 0), False),
    ],
)
def test_float32_is_within_a_ten_thousandth_and_changes_no_label(parity: Parity, passes: bool) -> None:
    assert parity.passed is passes


def test_what_is_no_number_or_has_no_picture_does_not_pass() -> None:
    expected = answers(0.6, 1000)
    broken = expected.copy()
    broken[3] = np.nan
    assert not agreement(broken, expected, [0] * 1000, FP16).passed
    assert not agreement(expected, expected, [0] * 1000, FP16, finite=False).passed
    assert not agreement(expected[:0], expected[:0], [], INT8).passed


@pytest.mark.parametrize("limits", [FP16, INT8])
@pytest.mark.parametrize(("pictures", "passes"), [(6, False), (LEAST_JUDGED - 1, False), (LEAST_JUDGED, True)])
def test_few_pictures_prove_nothing(limits: Limits, pictures: int, passes: bool) -> None:
    expected = answers(0.6, pictures)
    assert agreement(expected, expected, [0] * pictures, limits).passed is passes


def test_a_bad_file_hardly_ever_passes_by_luck() -> None:
    """One that truly changes 5% of the labels, by the binomial distribution, for every number of pictures."""
    for pictures in range(LEAST_JUDGED, JUDGED + 1):
        most = pictures - math.ceil(round(INT8.agreement * pictures, 6))
        luck = sum(math.comb(pictures, wrong) * 0.05**wrong * 0.95 ** (pictures - wrong) for wrong in range(most + 1))
        assert luck < 0.05, pictures


CONVOLUTIONS = 4


def write_graph(file: Path, gain: float = 1.0) -> Path:
    """What an export is, in small: four convolutions, every second one followed by ReLU6, and a head; what leaves the
    last convolution is `gain` times as much, which the head takes back."""
    random, helper = np.random.default_rng(0), onnx.helper
    tensors = {
        "mean": np.full((1, 3, 1, 1), 120, np.float32),
        "low": np.float32(0),
        "high": np.float32(6),
        "axes": np.array([2, 3]),
        "head": (random.normal(size=(2, 8)) / 4 / gain).astype(np.float32),
        "head_bias": np.array([2.5, 0], np.float32),
        "temperature": np.float32(1.5),
    }
    nodes = [
        helper.make_node("Transpose", ["pictures"], ["transposed"], "transpose", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["transposed"], ["cast"], "cast", to=onnx.TensorProto.FLOAT),
        helper.make_node("Sub", ["cast", "mean"], ["last"], "sub"),
    ]
    for number in range(CONVOLUTIONS):
        weights = random.normal(size=(8, 8 if number else 3, 3, 3)) / (4 if number else 100)
        tensors[f"weights{number}"] = (weights * (gain if number == CONVOLUTIONS - 1 else 1)).astype(np.float32)
        tensors[f"bias{number}"] = np.zeros(8, np.float32)
        inputs = [nodes[-1].output[0], f"weights{number}", f"bias{number}"]
        nodes.append(helper.make_node("Conv", inputs, [f"conv{number}"], f"conv{number}", pads=[1, 1, 1, 1]))
        if number % 2 == 0:
            nodes.append(helper.make_node("Clip", [f"conv{number}", "low", "high"], [f"clip{number}"], f"clip{number}"))
    nodes += [
        helper.make_node("ReduceMean", [nodes[-1].output[0], "axes"], ["pooled"], "pool", keepdims=0),
        helper.make_node("Gemm", ["pooled", "head", "head_bias"], ["logits"], "head", transB=1),
        helper.make_node("Div", ["logits", "temperature"], ["divided"], "div"),
        helper.make_node("Softmax", ["divided"], ["probabilities"], "softmax", axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "little",
        [helper.make_tensor_value_info("pictures", onnx.TensorProto.UINT8, ["batch", 12, 12, 3])],
        [helper.make_tensor_value_info("probabilities", onnx.TensorProto.FLOAT, ["batch", 2])],
        [onnx.numpy_helper.from_array(np.asarray(values), name) for name, values in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {KEY: json.dumps({"labels": ["a", "b"], "training": {"epochs": 3}})})
    onnx.save(model, file)
    return file


def drawn(count: int, contrast: float = 1.0) -> NDArray[np.uint8]:
    """Pictures from that contrast up to full contrast, each of its own colour."""
    random = np.random.default_rng(1)
    pixels = random.integers(-60, 61, (count, 12, 12, 3)) + random.integers(-60, 61, (count, 1, 1, 3))
    return (128 + pixels * np.linspace(contrast, 1, count).reshape(-1, 1, 1, 1)).astype(np.uint8)


def run(file: Path, pictures: NDArray[np.uint8], *names: str) -> list[NDArray[np.float32]]:
    """The probabilities, and the float32 tensors of these names."""
    model = onnx.load(file)
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs: list[NDArray[np.float32]] = session.run(None, {"pictures": pictures})
    return outputs


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8])
@pytest.mark.parametrize("first", [0, 1, 3])
def test_a_precision_begins_after_so_many_convolutions_and_ends_before_the_head(
    tmp_path: Path, precision: Precision, first: int
) -> None:
    source = write_graph(tmp_path / "whole.onnx")
    if precision is Precision.FP16:
        write_fp16(source, tmp_path / "lower.onnx", first)
    else:
        write_int8(source, tmp_path / "lower.onnx", first, drawn(8))
    model = onnx.load(tmp_path / "lower.onnx")
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def is_float(node: Any) -> bool:
        return node.input[1] in tensors and tensors[node.input[1]].data_type == onnx.TensorProto.FLOAT

    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert [is_float(node) for node in convolutions] == [number < first for number in range(CONVOLUTIONS)]
    assert is_float(next(node for node in model.graph.node if node.op_type == "Gemm"))
    used = {name for node in model.graph.node for name in node.input}
    assert set(tensors) <= used  # no weights are kept twice
    metadata = json.loads(next(prop.value for prop in model.metadata_props if prop.key == KEY))
    assert metadata == {"labels": ["a", "b"], "training": {"epochs": 3, "precision": precision.value}}
    pictures = drawn(20)
    ((expected,), (answers,)) = run(source, pictures), run(tmp_path / "lower.onnx", pictures)
    assert np.ptp(expected[:, 0]) > 0.1  # they differ at all
    assert answers == pytest.approx(expected, abs=0.001 if precision is Precision.FP16 else 0.02)


def test_an_activation_beyond_float16_on_any_picture_is_noticed_also_where_the_processor_computes_in_float32(
    tmp_path: Path,
) -> None:
    source = write_graph(tmp_path / "whole.onnx", gain=2.0**13)
    write_fp16(source, tmp_path / "half.onnx", 0)
    pictures = drawn(5, contrast=0.1)
    largest = [float(np.abs(run(source, picture[np.newaxis], "conv3")[1]).max()) for picture in pictures]
    fits = [value < 65_504 for value in largest]
    assert fits[0] and not fits[-1]
    assert np.isfinite(run(tmp_path / "half.onnx", pictures)[0]).all()
    assert [overflows(tmp_path / "half.onnx", picture[np.newaxis]) for picture in pictures] == [not fit for fit in fits]
    assert overflows(tmp_path / "half.onnx", pictures)
    assert not overflows(tmp_path / "half.onnx", pictures[:1])


@pytest.mark.filterwarnings("error")
def test_weights_beyond_float16_get_infinite_for_the_gate_to_notice_and_nothing_is_said(tmp_path: Path) -> None:
    write_fp16(write_graph(tmp_path / "whole.onnx", gain=2.0**25), tmp_path / "half.onnx", 0)
    assert overflows(tmp_path / "half.onnx", drawn(1))
    assert not np.isfinite(run(tmp_path / "half.onnx", drawn(1))[0]).all()


def test_the_quantiser_has_nothing_to_tell_the_user(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_int8(write_graph(tmp_path / "whole.onnx"), tmp_path / "lower.onnx", 1, drawn(2))
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_int8_takes_the_mean_range_of_all_calibration_pictures_and_a_scale_for_each_channel(tmp_path: Path) -> None:
    source, pictures = write_graph(tmp_path / "whole.onnx"), drawn(8, contrast=0.1)
    write_int8(source, tmp_path / "lower.onnx", 1, pictures)
    graph = onnx.load(tmp_path / "lower.onnx").graph
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    assert [node.op_type for node in graph.node].count("Clip") == 1  # what is quantised has its limits in the range
    names = ("conv1", "conv3")  # no ReLU6 limits them
    for name, values in zip(names, run(source, pictures, *names)[1:], strict=True):
        quantised = next(node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == name)
        width = values.max(axis=(1, 2, 3)).mean() - values.min(axis=(1, 2, 3)).mean()
        assert tensors[quantised.input[1]] == pytest.approx(width / 255, rel=1e-4)
        assert tensors[quantised.input[2]].dtype == np.uint8
    original = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(source).graph.initializer}
    for number in range(1, CONVOLUTIONS):
        weights = original[f"weights{number}"]
        largest = np.abs(weights).max(axis=(1, 2, 3))
        largest = np.maximum(largest, np.abs(weights[:, 1:] + weights[:, :-1]).max(axis=(1, 2, 3)) * 127 / 128)
        assert tensors[f"weights{number}_scale"] == pytest.approx(2 * largest / 254, rel=1e-2)
        assert tensors[f"weights{number}_quantized"].dtype == np.int8


def test_int8_does_not_lean_to_one_class(tmp_path: Path) -> None:
    source, pictures = write_graph(tmp_path / "whole.onnx"), drawn(8, contrast=0.1)
    write_int8(source, tmp_path / "lower.onnx", 1, pictures)
    before, after = (run(file, pictures, "logits")[1] for file in (source, tmp_path / "lower.onnx"))
    assert not np.allclose(after, before, atol=1e-3)
    assert after.mean(axis=0) == pytest.approx(before.mean(axis=0), abs=1e-5)


def test_int8_weights_are_rounded_for_what_their_convolution_gives(tmp_path: Path) -> None:
    source, pictures = write_graph(tmp_path / "whole.onnx"), drawn(8, contrast=0.1)
    write_int8(source, tmp_path / "lower.onnx", 1, pictures)
    graph = onnx.load(tmp_path / "lower.onnx").graph
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    original = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(source).graph.initializer}
    fed = dict(zip(("clip0", "conv1", "clip2"), run(source, pictures, "clip0", "conv1", "clip2")[1:], strict=True))
    for number, inputs in zip((1, 2, 3), fed.values(), strict=True):
        weights, scale = original[f"weights{number}"], tensors[f"weights{number}_scale"].reshape(-1, 1, 1, 1)

        def error(codes: NDArray[Any], inputs: Any = inputs, weights: Any = weights, scale: Any = scale) -> float:
            off = torch.from_numpy((codes * scale - weights).astype(np.float32))
            return float(torch.nn.functional.conv2d(torch.from_numpy(inputs), off, padding=1).square().sum())

        assert error(tensors[f"weights{number}_quantized"]) < 0.9 * error(np.rint(weights / scale))


def test_places() -> None:
    assert place(Path("a/b.c.onnx"), Precision.FP32) == Path("a/b.c.onnx")
    assert place(Path("a/b.c.onnx"), Precision.INT8) == Path("a/b.c.int8.onnx")
    assert place(Path("a/b.c.onnx"), Precision.FP16) == Path("a/b.c.fp16.onnx")


def test_spread() -> None:
    assert spread(range(10), 5) == [0, 2, 4, 6, 8]
    assert spread(range(3), 5) == [0, 1, 2]
    assert spread([], 5) == []
    assert len(set(spread(range(1000), 256))) == 256


def write_held_out(folder: Path, splits: dict[str, int], header: list[str], extra: list[str]) -> None:
    """A run with grey pictures `val0.png`, ...; the labels alternate."""
    (folder / "config.json").write_text(json.dumps({"data": str(folder)}))
    with (folder / "heldout.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "path", "group", "label", *header, "p_a", "p_b"])
        for split, count in splits.items():
            for number in range(count):
                Image.new("L", (8, 8), number).save(folder / f"{split}{number}.png")
                writer.writerow([split, f"{split}{number}.png", "", "ab"[number % 2], *extra, 0.5, 0.5])


def test_no_picture_calibrates_and_judges(tmp_path: Path) -> None:
    write_held_out(tmp_path, {"val": 20, "test": 6}, ["age", "race"], ["30-39", "x"])
    (tmp_path / "val1.png").write_bytes(b"broken")
    (tmp_path / "test0.png").unlink()
    held = held_out(tmp_path, ("a", "b"), Preprocessing(size=4, resize=4))
    calibration, gate = ({Path(one.path).name for one in part} for part in (held.calibration, held.gate))
    assert not calibration & gate
    tested = {f"test{number}.png" for number in range(1, 6)}
    read = {f"val{number}.png" for number in range(20)} - {"val1.png"} | tested
    assert calibration | gate == read
    assert len(calibration) == 10
    assert not calibration & tested
    assert {Path(one.path).name for one in held.proof} == read
    assert [Path(one.path).name for one in held.figures] == [f"test{number}.png" for number in range(1, 6)]
    assert [one.label for one in held.figures] == [1, 0, 1, 0, 1]
    assert held.figures[0].attributes == {"age": "30-39", "race": "x"}
    assert held.split == "test"
    assert held.judged_by_test


@pytest.mark.parametrize(("validation", "test"), [(198, 1), (199, 1), (198, 0)])
def test_the_test_judges_where_validation_cannot(tmp_path: Path, validation: int, test: int) -> None:
    write_held_out(tmp_path, {"val": validation, "test": test}, [], [])
    held = held_out(tmp_path, ("a", "b"), Preprocessing(size=4, resize=4))
    assert len(held.calibration) == validation // 2
    assert len(held.gate) == (LEAST_JUDGED if test else LEAST_JUDGED - 1)
    assert held.judged_by_test == (validation == 198 and test == 1)
    assert held.judged_by_test == any("test" in Path(one.path).name for one in held.gate)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b'{"data": "/pho'),
        ("config.json", b"{}"),
        ("config.json", b"[]"),
        ("config.json", b'{"data": 1}'),
        ("config.json", b"\xff"),
        ("config.json", b"[" * 100_000),
        ("heldout.csv", b""),
        ("heldout.csv", b"split,path,group,label,p_a,p_b\nval,val0.png\n"),
        ("heldout.csv", b"split,path,group,label,p_a,p_b\nva"),
        ("heldout.csv", b"split,path,group,label,p_a,p_b\nval,val0.png,,a,0.5,0.5\nval,val1.png,,b,0.5"),
        ("heldout.csv", b"split,path,group,label,p_a,p_b\nval,val0.png,,c,0.5,0.5\n"),
    ],
)
def test_a_damaged_file_of_the_run_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    write_held_out(tmp_path, {"val": 4}, [], [])
    (tmp_path / name).write_bytes(content)
    with pytest.raises(HeldOutError) as caught:
        held_out(tmp_path, ("a", "b"), Preprocessing(size=4, resize=4))
    assert str(caught.value).startswith(f"{tmp_path / name}: damaged")


@pytest.mark.parametrize(
    ("splits", "gone", "told"),
    [
        ({"val": 4, "test": 4}, "test", "none of the run's 4 test pictures"),
        ({"val": 4, "test": 4}, "", "none of the run's 8 held-out pictures"),
        ({"val": 4}, "val", "none of the run's 4 held-out pictures"),
        ({"val": 11, "test": 1}, "val", "1 of the run's 12 held-out pictures"),
    ],
)
def test_pictures_that_are_gone_are_told_with_their_folder(
    tmp_path: Path, splits: dict[str, int], gone: str, told: str
) -> None:
    write_held_out(tmp_path, splits, [], [])
    for path in tmp_path.glob(f"{gone}*.png"):
        path.unlink()
    with pytest.raises(HeldOutError) as caught:
        held_out(tmp_path, ("a", "b"), Preprocessing(size=4, resize=4))
    assert str(caught.value).startswith(f"{tmp_path}: {told}")


def test_where_few_are_left_for_validation_those_of_the_test_judge(tmp_path: Path) -> None:
    """Also where the others are only gone."""
    write_held_out(tmp_path, {"val": 200, "test": 10}, [], [])
    assert not held_out(tmp_path, ("a", "b"), Preprocessing(size=4, resize=4)).judged_by_test
    (tmp_path / "val1.png").unlink()
    held = held_out(tmp_path, ("a", "b"), Preprocessing(size=4, resize=4))
    assert held.judged_by_test
    assert len(held.gate) == 99 + 10
    assert held.gone == 1


@pytest.mark.parametrize("name", ["config.json", "heldout.csv"])
def test_a_missing_file_of_the_run_is_named(tmp_path: Path, name: str) -> None:
    write_held_out(tmp_path, {"val": 4}, [], [])
    (tmp_path / name).unlink()
    with pytest.raises(HeldOutError, match=f"{name}: it is missing; bring it back"):
        held_out(tmp_path, ("a", "b"), Preprocessing(size=4, resize=4))


def test_help_and_documents_tell_the_limits_of_the_gates() -> None:
    from gender_batch.cli.export import export

    help_text = " ".join((export.help or "").split())
    limits = f"fp16: {FP16.agreement:.1%} of the labels agree. int8: {INT8.agreement:.1%}, and {INT8.confident:.1%} of "
    assert f"{limits}those that the checkpoint gives with at least {CONFIDENT:g}" in help_text
    assert f"within {100 * INT8.accuracy:g} points" in help_text
    assert f"at least {LEAST_JUDGED} held-out pictures" in help_text
    promise = (REPOSITORY / "export" / "README.md").read_text()
    assert f"| same label on {FP16.agreement:.1%};" in promise
    assert f"same label on {INT8.agreement:.1%}, and on {INT8.confident:.1%} of the pictures that it answers" in promise
    assert f"On fewer than {LEAST_JUDGED}" in promise


@pytest.mark.parametrize("moved", [False, True])
def test_pictures_that_were_cut_out_are_taken_from_where_the_run_put_them(tmp_path: Path, moved: bool) -> None:
    """Of a run that may be moved together with them the place is told from its folder on."""
    run, faces = tmp_path / "run", tmp_path / "faces"
    run.mkdir()
    faces.mkdir()
    write_held_out(faces, {"val": 4}, [], [])
    (faces / "heldout.csv").rename(run / "heldout.csv")
    (run / "config.json").write_text(
        json.dumps({"data": str(tmp_path / "photos"), PICTURES: "../faces" if moved else str(faces)})
    )
    held = held_out(run, ("a", "b"), Preprocessing(size=4, resize=4))
    assert {Path(one.path).parent.resolve() for one in held.figures} == {faces}


def test_without_a_test_the_figures_are_of_the_validation(tmp_path: Path) -> None:
    write_held_out(tmp_path, {"val": 4}, [], [])
    held = held_out(tmp_path, ("a", "b"), Preprocessing(size=4, resize=4))
    assert held.split == "val"
    assert len(held.figures) == 4
    assert held.figures[0].attributes == {}
