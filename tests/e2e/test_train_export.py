"""train -> export -> evaluate -> classify, as a user does it, on a few real photos."""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from installed import COMMAND, gender_batch, in_this_process, read_csv
from PIL import Image

from gender_batch.outputs.publish import locked

pytest.importorskip("torch")

from safetensors.torch import load_file, save_file

SMALL = ("--image-size", "48", "--batch-size", "16", "--device", "cpu")
SHORT = (*SMALL, "--adapt-epochs", "1", "--fine-epochs", "2")


@pytest.fixture(scope="module")
def run(labelled: Path, initial_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, split by person."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    result = in_this_process(
        "train", labelled, "--out", folder, "--init", initial_weights, "--group-by", r"/([fm]\d+)_",
        "--attribution", "somebody, CC BY", *SHORT,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr.decode()
    return folder


@pytest.fixture(scope="module")
def model(run: Path) -> Path:
    result = in_this_process("export", run)
    assert result.returncode == 0, result.stderr.decode()
    assert b"labels changed 0" in result.stdout
    return run / "model.onnx"


def test_a_run_holds_its_report(run: Path) -> None:
    assert {path.name for path in run.iterdir()} >= {
        "checkpoint.safetensors", "config.json", "metrics.json", "history.csv", "heldout.csv",
        "curves.png", "confusion.png", "gallery.png", "train.log",
    }  # fmt: skip
    assert not (run / "state.pt").exists()
    with (run / "history.csv").open(newline="") as file:
        history = list(csv.DictReader(file))
    assert [(row["phase"], row["epoch"]) for row in history] == [
        ("adaptation", "1"),
        ("fine-tuning", "1"),
        ("fine-tuning", "2"),
    ]
    # Features that do not know such pictures learn batch-norm statistics of their own, few as the pictures are.
    assert json.loads((run / "config.json").read_text())["statistics_from"] == 0
    metrics = json.loads((run / "metrics.json").read_text())
    for split in ("val", "test"):
        held = [row for row in read_csv(run / "heldout.csv") if row["split"] == split]
        right = sum((float(row["p_female"]) > float(row["p_male"])) == (row["label"] == "female") for row in held)
        assert metrics[split]["accuracy"]["count"] == right
        assert metrics[split]["pictures"] == len(held)
        assert metrics[split]["people"] == len({row["group"] for row in held}) < len(held)
    # These are learnt as whole photos, in which faces have a size of their own.
    assert metrics["face_scales"] == {}
    assert "Accuracy against face scale" not in (run / "report.html").read_text()
    for name in ("curves", "confusion", "gallery"):
        with Image.open(run / f"{name}.png") as image:
            assert min(image.size) > 200
    log = (run / "train.log").read_text()
    assert "fine-tuning epoch 2" in log


def test_nobody_is_in_two_splits(run: Path, labelled: Path) -> None:
    held = {split: set[str]() for split in ("val", "test")}
    names = set()
    for row in read_csv(run / "heldout.csv"):
        held[row["split"]].add(row["group"])
        names.add(row["path"])
    assert not held["val"] & held["test"]
    both = held["val"] | held["test"]
    rest = {str(path.relative_to(labelled)) for path in labelled.rglob("*.jpg")} - names
    assert rest
    assert not {name.split("/")[1].split("_")[0] for name in rest} & both


def test_adaptation_leaves_the_features_alone(labelled: Path, initial_weights: Path, tmp_path: Path) -> None:
    arguments = ("train", labelled, "--out", tmp_path / "run", "--init", initial_weights, *SMALL)
    result = in_this_process(*arguments, "--adapt-epochs", "2", "--fine-epochs", "0")
    assert result.returncode == 0, result.stderr
    import torch

    before = torch.load(initial_weights, weights_only=True)
    after = load_file(tmp_path / "run" / "checkpoint.safetensors")
    features = [name for name in before if name.startswith("features.")]
    assert len(features) > 200
    for name in features:  # batch-norm statistics among them
        assert torch.equal(before[name], after[f"backbone.{name}"]), name


def test_class_weights_are_recommended_where_a_class_is_rare(
    labelled: Path, initial_weights: Path, tmp_path: Path
) -> None:
    for label, count in (("female", 12), ("male", None)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for path in sorted((labelled / label).iterdir())[:count]:
            (tmp_path / "data" / label / path.name).symlink_to(path)
    for name, options in (("without", ()), ("with", ("--class-weights",))):
        arguments = ("train", tmp_path / "data", "--out", tmp_path / name, "--init", initial_weights, *SMALL, *options)
        result = in_this_process(*arguments, "--adapt-epochs", "1", "--fine-epochs", "0")
        assert result.returncode == 0, result.stderr
        assert json.loads((tmp_path / name / "config.json").read_text())["class_weights"] == bool(options)
        assert (b"--class-weights lets them count alike" in result.stderr) != bool(options)


def test_resumed_equals_uninterrupted(labelled: Path, initial_weights: Path, tmp_path: Path) -> None:
    # What is learnt beside the classes must go on, too.
    names = [path.relative_to(labelled) for path in sorted(labelled.glob("*/*"))]
    lines = [f"{name},{'old' if number % 3 else 'young'}" for number, name in enumerate(names)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,age", *lines]) + "\n")
    extra = ("--labels", tmp_path / "labels.csv", "--auxiliary", "age")
    arguments = ("train", labelled, "--init", initial_weights, *SHORT, *extra, "--out")
    whole = in_this_process(*arguments, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    with subprocess.Popen([COMMAND, *arguments, tmp_path / "cut"], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if b"fine-tuning epoch 1" in line:
                process.send_signal(signal.SIGTERM)
                break
        told = process.stderr.read()
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert b"--resume" in told
    resumed = in_this_process(*arguments, tmp_path / "cut", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stderr.count(b"fine-tuning epoch") == 1
    expected = load_file(tmp_path / "whole" / "checkpoint.safetensors")
    actual = load_file(tmp_path / "cut" / "checkpoint.safetensors")
    for name, tensor in expected.items():
        assert actual[name].float().numpy() == pytest.approx(tensor.float().numpy(), abs=1e-4), name


def test_the_model_file_says_all_and_answers_as_the_run_did(run: Path, model: Path, labelled: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    (given,) = session.get_outputs()
    assert (taken.type, taken.shape[1:]) == ("tensor(uint8)", [48, 48, 3])
    assert isinstance(taken.shape[0], str)
    assert given.shape[1] == 2
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["gender_batch"])
    assert metadata["labels"] == ["female", "male"]
    assert metadata["attributions"] == ["somebody, CC BY"]
    assert metadata["figures"] == json.loads((run / "metrics.json").read_text())
    written = model.read_bytes()
    assert str(labelled).encode() not in written  # no path of the machine it was made on,
    assert b'.py", line ' not in written  # nor lines of what it was made by; three bytes are among weights by chance

    held = read_csv(run / "heldout.csv")
    paths = b"\n".join(os.fsencode(labelled / row["path"]) for row in held)
    gender_batch("classify", "-", "--model", model, "--out", run / "served.csv", stdin=paths)
    for expected, actual in zip(held, read_csv(run / "served.csv"), strict=True):
        assert float(actual["p_female"]) == pytest.approx(float(expected["p_female"]), abs=1e-4)


def test_the_card_carries_figures_attributions_and_limits(model: Path) -> None:
    card = model.with_suffix(".md").read_text()
    for text in ("somebody, CC BY", "apparent", "Intended use", "accuracy", "SHA-256", "uncertain"):
        assert text in card
    assert re.search(r"weights kept after comparing losses on validation: the (best|last|mean)", card)


def test_evaluate_goes_the_way_of_classify(model: Path, labelled: Path, tmp_path: Path) -> None:
    with (tmp_path / "groups.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "parity"])
        for path in sorted(labelled.rglob("*.jpg")):
            writer.writerow([path.relative_to(labelled), ("even", "odd")[int(path.stem[-1])]])
    result = gender_batch(
        "evaluate", labelled, "--model", model, "--out", tmp_path / "report", "--groups", tmp_path / "groups.csv"
    )
    assert result.returncode == 0, result.stderr
    gender_batch("classify", labelled, "--model", model, "--out", tmp_path / "rows.csv")
    rows = read_csv(tmp_path / "rows.csv")
    right = sum((float(row["p_female"]) >= float(row["p_male"])) == ("female" in row["path"]) for row in rows)
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert metrics["accuracy"]["count"] == right
    assert metrics["accuracy"]["total"] == len(rows) == 120
    groups = metrics["groups"]["parity"]
    assert {name: group["total"] for name, group in groups.items()} == {"even": 60, "odd": 60}
    assert sum(group["count"] for group in groups.values()) == right
    assert {"confusion.png", "reliability.png", "gallery.png"} <= {p.name for p in (tmp_path / "report").iterdir()}


def test_evaluate_leaves_the_figures_of_a_training(run: Path, model: Path, labelled: Path) -> None:
    before = (run / "metrics.json").read_bytes()
    result = in_this_process("evaluate", labelled, "--model", model, "--out", run)
    assert result.returncode == 2
    assert b"name another folder with --out" in result.stderr
    assert (run / "metrics.json").read_bytes() == before


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """A copy of the run, not exported yet."""
    return shutil.copytree(run, tmp_path / "copied", ignore=shutil.ignore_patterns("model.*", "served.csv"))


def test_an_export_that_fails_its_gate_leaves_no_file(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gender_batch_export import export

    write_graph = export.write_graph
    monkeypatch.setattr(
        export, "write_graph", lambda checkpoint, file: write_graph(replace(checkpoint, temperature=9.0), file)
    )
    before = {path.name for path in copied.iterdir()}
    result = in_this_process("export", copied)
    assert result.returncode == 1
    assert b"the file does not give the checkpoint's answers" in result.stderr
    assert {path.name for path in copied.iterdir()} == before


@pytest.mark.parametrize("value", [float("nan"), 0.0])
def test_a_checkpoint_that_is_damaged_where_nothing_else_tells_is_not_exported(copied: Path, value: float) -> None:
    from safetensors import safe_open

    with safe_open(copied / "checkpoint.safetensors", "pt") as file:
        metadata = file.metadata()
    state = load_file(copied / "checkpoint.safetensors")
    state["backbone.features.2.conv.0.0.weight"][:] = value
    save_file(state, copied / "checkpoint.safetensors", metadata)
    result = in_this_process("export", copied)
    assert result.returncode == 1
    assert b"the checkpoint gives it another answer than heldout.csv says it did after the training" in result.stderr
    assert not list(copied.glob("model.*"))


def test_pictures_that_changed_since_the_training_prove_nothing(copied: Path, labelled: Path, tmp_path: Path) -> None:
    data = shutil.copytree(labelled, tmp_path / "data")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "pictures_in": str(data)}))
    with (copied / "heldout.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    surest = max(rows, key=lambda row: abs(float(row["p_female"]) - 0.5))
    unsure = min(rows, key=lambda row: abs(float(row["p_female"]) - 0.5))
    shutil.copyfile(data / unsure["path"], data / surest["path"])
    result = in_this_process("export", copied)
    assert result.returncode == 1
    assert result.stderr.decode().startswith(f"gender-batch: {data / surest['path']}: the checkpoint gives it another")
    assert not list(copied.glob("model.*"))

    (data / surest["path"]).unlink()
    result = in_this_process("export", copied)
    assert result.returncode == 0, result.stderr
    assert b"note: 1 held-out pictures cannot be read any more" in result.stderr


def test_a_list_of_held_out_pictures_that_is_cut_short_is_told(copied: Path) -> None:
    with (copied / "heldout.csv").open() as file:
        lines = file.readlines()
    (copied / "heldout.csv").write_text("".join(lines[:-1]))
    result = in_this_process("export", copied)
    assert result.returncode == 1
    assert b"heldout.csv: lists " in result.stderr
    assert b"cut short, or another run's" in result.stderr


def test_a_cross_validation_is_not_exported(tmp_path: Path) -> None:
    (tmp_path / "folds.json").touch()
    result = in_this_process("export", tmp_path)
    assert result.returncode == 1
    told = result.stderr.decode()
    assert told.startswith(f"gender-batch: {tmp_path}: a cross-validation")
    assert "without --folds" in told
    assert str(tmp_path / "fold-1") in told


def test_a_seed_that_no_generator_takes_is_wrong_use(labelled: Path, tmp_path: Path) -> None:
    result = in_this_process("train", labelled, "--out", tmp_path / "run", "--seed", str(2**32))
    assert result.returncode == 2
    assert b"--seed" in result.stderr


def test_an_unfinished_training_is_not_exported(copied: Path) -> None:
    (copied / "state.pt").touch()
    result = in_this_process("export", copied)
    assert result.returncode == 1
    assert b"its training is not finished" in result.stderr


def test_what_a_killed_export_left_is_removed_unless_another_one_runs(copied: Path) -> None:
    left = copied / ".model.onnx.abc_1234.tmp"
    left.mkdir()
    (left / "fp32.onnx").touch()
    with locked(copied / "model.onnx"):
        result = in_this_process("export", copied)
    assert result.returncode == 5
    assert left.exists()
    assert in_this_process("export", copied).returncode == 0
    assert not list(copied.glob(".model*"))


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_an_export_that_is_stopped_says_so_and_leaves_nothing(run: Path, tmp_path: Path, number: int) -> None:
    arguments = [COMMAND, "export", run, "--out", tmp_path / "mine.onnx"]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE) as process:
        while process.poll() is None and not any(tmp_path.glob("*/*")):
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(timeout=60) == 128 + number
        assert process.stderr is not None
        told = process.stderr.read().decode()
    assert told.startswith(f"gender-batch: stopped by {signal.Signals(number).name}")
    assert not list(tmp_path.iterdir())


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """A limit of a file's bytes, which the system tells as it does of a full disk: without the file's name."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_with_the_file(run: Path, tmp_path: Path) -> None:
    with files_limited_to(1_000_000):
        result = in_this_process("export", run, "--out", tmp_path / "mine.onnx")
    assert result.returncode == 1
    assert result.stderr.decode() == (
        f"gender-batch: {tmp_path / 'mine.onnx'}: File too large; {run} must be readable, and where the file goes "
        "writable, with room; --out names another\n"
    )
    assert not list(tmp_path.iterdir())


def test_a_picture_that_goes_while_the_export_proves_is_told(
    run: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gender_batch_export import export

    data = shutil.copytree(labelled, tmp_path / "data")
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("model.*", "served.csv"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "pictures_in": str(data)}))
    write_graph = export.write_graph
    monkeypatch.setattr(export, "write_graph", lambda *given: (write_graph(*given), shutil.rmtree(data)))
    result = in_this_process("export", copy)
    assert result.returncode == 1
    assert result.stderr.decode().startswith(f"gender-batch: {copy}: a held-out picture changed while it was used (")
    assert not list(copy.glob("model.*"))


def test_the_gate_notices_another_checkpoint(run: Path, model: Path, faces: list[Path]) -> None:
    from gender_batch_export.parity import compare, torch_probabilities

    from gender_batch.training.network import Checkpoint

    checkpoint = Checkpoint.load(run / "checkpoint.safetensors")
    pictures = [str(path) for path in faces[:9]]
    assert compare(torch_probabilities(checkpoint, pictures), model, pictures).passed
    checkpoint.network.head[1].weight.data *= 1.05
    assert not compare(torch_probabilities(checkpoint, pictures), model, pictures).passed


def test_export_without_a_run_takes_the_newest(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = in_this_process("export")
    assert result.returncode == 1
    assert b"train" in result.stderr
    shutil.copytree(run, tmp_path / "runs" / "older")
    shutil.copytree(run, tmp_path / "runs" / "newer")
    os.utime(tmp_path / "runs" / "older" / "checkpoint.safetensors", (1, 1))
    result = in_this_process("export", "--out", "mine.onnx")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "mine.onnx").is_file()
    assert (tmp_path / "mine.md").is_file()


def test_three_classes_get_three_columns(
    labelled: Path, initial_weights: Path, faces: list[Path], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(labelled, data)
    (data / "grey").mkdir()
    for number in range(40):
        Image.linear_gradient("L").rotate(9 * number).save(data / "grey" / f"{number}.png")
    arguments = ("train", data, "--out", tmp_path / "run", "--init", initial_weights, *SMALL)
    result = in_this_process(*arguments, "--adapt-epochs", "1", "--fine-epochs", "0", "--target-precision", "0.01")
    assert result.returncode == 0, result.stderr
    assert b"uncertain below 0.333333: " in result.stdout
    assert in_this_process("export", tmp_path / "run").returncode == 0
    gender_batch("classify", faces[0], "--model", tmp_path / "run" / "model.onnx", "--out", tmp_path / "rows.csv")
    (row,) = read_csv(tmp_path / "rows.csv")
    assert sum(float(row[f"p_{label}"]) for label in ("female", "grey", "male")) == pytest.approx(1, abs=3e-6)


def test_wrong_data_is_told_before_the_first_epoch(initial_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "female").mkdir(parents=True)
    result = in_this_process("train", tmp_path / "data", "--out", tmp_path / "run", "--init", initial_weights, *SHORT)
    assert result.returncode == 1
    assert b"two or more" in result.stderr
    assert os.fsencode(tmp_path / "data") in result.stderr


def test_a_few_unreadable_pictures_are_left_out_and_listed(
    initial_weights: Path, labelled: Path, tmp_path: Path
) -> None:
    shutil.copytree(labelled, tmp_path / "data")
    (tmp_path / "data" / "male" / "bad.jpg").write_text("no picture")
    arguments = ("train", tmp_path / "data", "--out", tmp_path / "run", "--init", initial_weights, *SMALL)
    result = in_this_process(*arguments, "--adapt-epochs", "1", "--fine-epochs", "0")
    assert result.returncode == 0
    assert b"left out: male/bad.jpg: unsupported" in result.stderr


def test_a_file_whose_name_is_no_text_does_not_end_the_training(
    initial_weights: Path, labelled: Path, tmp_path: Path
) -> None:
    shutil.copytree(labelled, tmp_path / "data")
    Path(os.fsdecode(os.fsencode(tmp_path / "data" / "male") + b"/caf\xe9.jpg")).write_text("no picture")
    arguments = ("train", tmp_path / "data", "--out", tmp_path / "run", "--init", initial_weights, *SMALL)
    result = in_this_process(*arguments, "--adapt-epochs", "1", "--fine-epochs", "0")
    assert result.returncode == 0, result.stderr
    assert "left out: male/caf\\xe9.jpg: unsupported" in (tmp_path / "run" / "train.log").read_text()


def test_a_folder_that_cannot_be_written_is_told_in_one_line(
    labelled: Path, initial_weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    result = in_this_process("train", labelled, "--out", tmp_path / "file" / "run", "--init", initial_weights, *SHORT)
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.decode().splitlines() if "gender-batch:" in line]
    assert f"{tmp_path / 'file'}: Not a directory" in line
    assert "--out" in line


def test_a_full_disk_is_told_and_the_training_goes_on_when_there_is_room(
    labelled: Path, initial_weights: Path, tmp_path: Path
) -> None:
    arguments = ("train", labelled, "--out", tmp_path / "run", "--init", initial_weights, *SHORT)
    with files_limited_to(20_000_000):  # the first state has no room
        full = in_this_process(*arguments)
    assert full.returncode == 1
    last = full.stderr.decode().splitlines()[-1]
    assert last.startswith(f"gender-batch: {tmp_path / 'run' / 'state.pt'}: File too large; make room on ")
    assert last.endswith(f"--out {tmp_path / 'run'} --resume")
    assert b"Traceback" not in full.stderr
    assert not [path for path in (tmp_path / "run").iterdir() if path.suffix == ".tmp"]
    result = in_this_process(*arguments, "--resume")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "checkpoint.safetensors").is_file()


def test_a_failed_download_says_how_to_use_init(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    result = in_this_process("train", labelled, "--out", tmp_path / "run", "--init", "imagenet", *SHORT)
    assert result.returncode == 1
    assert b"--init" in result.stderr
