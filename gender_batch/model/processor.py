"""Which instructions this machine's processor has: they decide which numbers it computes with quickly."""

from __future__ import annotations

from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")


def instructions(cpu_info: Path = CPU_INFO) -> frozenset[str]:
    """Names such as `avx2`, as Linux tells them of x86; none where it tells nothing."""
    try:
        lines = cpu_info.read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split() for line in lines if line.startswith("flags")), ()))
