"""What the processor can, as Linux tells it, beside what torch is told by the processor itself; and what follows."""

from __future__ import annotations

from pathlib import Path

import pytest

from gender_batch.model.processor import instructions

torch = pytest.importorskip("torch")

from gender_batch.training.recipe import BF16, Machine

CPU = Machine(torch.device("cpu"), workers=0)


def test_flags_are_whole_words_of_the_first_processor(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16_not\nbugs\t\t: amx_bf16\n\nflags\t\t: amx_bf16\n")
    assert {"fpu", "avx2"} <= instructions(info)
    assert not BF16 & instructions(info)
    info.write_text("Features\t: fp asimd bf16\n")
    assert instructions(info) == frozenset()
    assert instructions(tmp_path / "none") == frozenset()


@pytest.mark.parametrize("name", ["avx2", *sorted(BF16)])
def test_they_are_those_that_the_processor_names(name: str) -> None:
    capabilities = torch.cpu.get_capabilities()
    if capabilities["architecture"] != "x86_64":
        pytest.skip("only of x86 anything is known")
    assert (name in instructions()) == capabilities[name]


def test_a_cpu_computes_in_bf16_only_where_it_has_it(recwarn: pytest.WarningsRecorder) -> None:
    assert CPU.precision == (torch.bfloat16 if BF16 & instructions() else torch.float32)
    with CPU.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == CPU.precision
    assert not list(recwarn)  # torch warns of a precision that autocast does not know
