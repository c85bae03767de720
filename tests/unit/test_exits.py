"""Signals end a command, wherever they find it."""

from __future__ import annotations

import signal
import time
import weakref

import pytest

from gender_batch.cli.exits import Exit, stopping_on_signals


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
