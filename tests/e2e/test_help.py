"""The command line tells what it is, quickly."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from installed import gender_batch

from gender_batch.cli import main


def test_help_loads_neither_torch_nor_onnxruntime() -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "gender_batch", "--help"], capture_output=True, text=True, check=True
    )
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in result.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"torch", "torchvision", "onnxruntime", "onnx", "numpy", "PIL", "rich", "matplotlib"}


def test_classify_never_loads_torch() -> None:
    program = (
        "import sys; from gender_batch.cli.classify import classify; import gender_batch.scoring.run; "
        "import gender_batch.outputs.rows, gender_batch.cli.progress, gender_batch.evaluation.labelled; "
        "print(sorted({'torch', 'torchvision', 'onnx', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("command", main.commands.values(), ids=lambda command: command.name)
def test_every_command_and_option_has_help(command: click.Command) -> None:
    assert command.help
    for option in command.params:
        assert isinstance(option, click.Argument) or option.help, option.name
    result = gender_batch(str(command.name), "--help")
    assert result.returncode == 0
    assert f"{command.name} " in gender_batch("--help").stdout.decode()


def test_version() -> None:
    from gender_batch import __version__

    assert __version__ in gender_batch("--version").stdout.decode()
