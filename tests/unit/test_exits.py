"""How a command ends: by signals, wherever they find it, at its deadline, or for want of a package."""

from __future__ import annotations

import signal
import sys
import time
import weakref

import click
import pytest

from gender_batch.cli.exits import Exit, needing_extra, stopping_on_signals
from gender_batch.cli.options import duration


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_where_python_cannot_pass_an_exception_on_is_not_lost(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    class Thing:
        pass

    thing = Thing()
    kept = weakref.ref(thing, lambda _: signal.raise_signal(number))
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM)
    with pytest.raises(SystemExit) as ended, stopping_on_signals("It goes on."):
        del thing
        time.sleep(20)
    assert ended.value.code == 128 + number
    assert capsys.readouterr().err == f"gender-batch: stopped by {number.name}. It goes on.\n"
    assert kept() is None
    assert handlers == (
        signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM)
    )  # fmt: skip


def test_the_end_of_the_time_ends_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, stopping_on_signals(lambda: "It goes on.", deadline=0.05):
        time.sleep(20)
    assert ended.value.code == Exit.DEADLINE
    assert "stopped at its --deadline. It goes on." in capsys.readouterr().err


def test_a_second_signal_does_not_cut_short_what_the_first_one_unwinds() -> None:
    closed = []
    with pytest.raises(SystemExit) as ended, stopping_on_signals("It goes on."):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGINT)
            closed.append("all")
    assert ended.value.code == 128 + signal.SIGTERM
    assert closed == ["all"]


def test_who_is_done_in_time_is_not_stopped_later() -> None:
    with stopping_on_signals("It goes on.", deadline=100):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_what_else_cannot_be_passed_on_is_told_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    class Thing:
        def __del__(self) -> None:
            raise ValueError("told")

    told: list[str] = []

    def hook(error: sys.UnraisableHookArgs) -> None:
        told.append(str(error.exc_value))

    monkeypatch.setattr(sys, "unraisablehook", hook)
    with stopping_on_signals("It goes on."):
        Thing()
        assert sys.unraisablehook is not hook
    assert told == ["told"]
    assert sys.unraisablehook is hook


def test_a_missing_package_is_told_with_its_extra_and_a_missing_module_of_ours_is_a_defect(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended, needing_extra("train"):
        raise ModuleNotFoundError(name="torch")
    assert ended.value.code == Exit.FATAL
    assert capsys.readouterr().err == ("gender-batch: this command needs torch: pip install 'gender-batch[train]'\n")
    with pytest.raises(ModuleNotFoundError), needing_extra("train"):
        raise ModuleNotFoundError(name="gender_batch.training.gone")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), (" 1.5m ", 90), ("6h", 21_600), ("2d", 172_800), ("0.5", 0.5), ("366d", 31_622_400)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0.0h", "-1", "1w", "h", "1h30m", "1e3", "367d", "nan", "9" * 400])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a duration"):
        duration(text)
