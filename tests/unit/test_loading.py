"""Squares and batches of them, in this process and in others."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from torch import nn

from gender_batch.pictures.preprocessing import Preprocessing
from gender_batch.pictures.read import PictureError
from gender_batch.training.loading import Squares, batches
from gender_batch.training.predict import predict_logits
from gender_batch.training.recipe import Machine

CPU = Machine(torch.device("cpu"), workers=0)


def numbered(folder: Path, count: int) -> Squares:
    """Pictures all of whose pixels are their number."""
    paths = [str(folder / f"{number}.png") for number in range(count)]
    for number, path in enumerate(paths):
        Image.new("RGB", (8, 8), (number,) * 3).save(path)
    return Squares(paths, Preprocessing(size=8, resize=8), folder)


def drawn(squares: Squares, size: int, seed: tuple[int, ...] | None = None) -> list[list[int]]:
    """The numbers in each batch, as its pictures and its indices say."""
    lists = []
    for pictures, indices in batches(squares, size, 0, torch.device("cpu"), seed):
        assert pictures[:, 0, 0, 0].tolist() == indices.tolist()
        lists.append(indices.tolist())
    return lists


@pytest.mark.parametrize("kept", [True, False])
def test_batches_are_in_order_and_whole_or_shuffled_without_the_odd_rest(tmp_path: Path, kept: bool) -> None:
    squares = numbered(tmp_path, 10)
    if not kept:
        squares.cache = None  # as of data that the disk cannot hold
    assert drawn(squares, 4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    shuffled = [drawn(squares, 4, seed) for seed in ((1, 2), (1, 3), (2, 2))]
    for lists in shuffled:
        assert [len(set(numbers)) for numbers in lists] == [4, 4]
        assert shuffled.count(lists) == 1
    assert drawn(squares, 4, (1, 2)) == shuffled[0]
    assert [sorted(numbers) for numbers in drawn(squares, 64, (1, 2))] == [list(range(10))]  # better than nothing


class Normed(nn.Module):
    """The first channel of the first pixel and its opposite, normalised: in training by the others of the batch."""

    classes = 2

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        level = self.norm(pictures[:, 0, 0, :1].float())
        return torch.cat([level, -level], dim=1)


def test_a_network_says_the_same_of_a_picture_in_any_company(tmp_path: Path) -> None:
    squares, network = numbered(tmp_path, 5), Normed()
    for size in (1, 2, 5):
        logits = predict_logits(network.train(), squares, CPU, size)  # type: ignore[arg-type]
        assert logits[:, 0] == pytest.approx(range(5), abs=1e-3)
        doubled = predict_logits(network.train(), squares, CPU, size, lambda pictures: 2 * pictures)  # type: ignore[arg-type]
        assert doubled == pytest.approx(2 * logits)
    assert predict_logits(network, numbered(tmp_path, 0), CPU).shape == (0, 2)  # type: ignore[arg-type]


def test_an_interrupt_of_the_terminal_leaves_the_loading_to_who_asked_for_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in range(40):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    paths = [str(tmp_path / f"{number}.png") for number in range(40)]
    squares = Squares(paths, Preprocessing(size=8, resize=8), tmp_path)
    squares.cache = None  # as of data that the disk cannot hold
    given = batches(squares, 4, 1, torch.device("cpu"))
    first, _ = next(given)
    (worker,) = multiprocessing.active_children()
    os.kill(int(worker.pid or 0), signal.SIGINT)
    assert sum(len(pictures) for pictures, _ in given) + len(first) == 40
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_goes_while_batches_are_asked_for_is_told(tmp_path: Path, workers: int) -> None:
    paths = [str(tmp_path / f"{number}.png") for number in range(4)]
    for path in paths[1:]:
        Image.new("RGB", (8, 8)).save(path)
    squares = Squares([], Preprocessing(size=8, resize=8), tmp_path)
    squares.paths = paths
    with pytest.raises(PictureError, match="the file is gone"):
        list(batches(squares, 2, workers, torch.device("cpu")))
