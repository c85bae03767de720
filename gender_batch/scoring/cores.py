"""How many cores this process may use, and the control groups that limit it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import ceil
from pathlib import Path


def usable_cores(root: Path = Path("/")) -> int:
    """Cores of its affinity, or fewer where a cgroup's quota, a container's limit, allows less time; at least 1."""
    # os.process_cpu_count (Python 3.13) gives the same, but for an override by the environment.
    cores = len(os.sched_getaffinity(0))
    return max(1, ceil(min(cores, _quota(root))))


def _quota(root: Path) -> float:
    """The least quota of this process's cgroup and those above it, in cores; infinite where there is none.

    Of version 2, `cpu.max` (cgroup-v2.rst), and of version 1, `cpu.cfs_quota_us` (sched-bwc.rst).
    """
    quotas = [float("inf")]
    for group in groups("cpu", root):
        quotas += _cores([*_lines(group / "cpu.cfs_quota_us"), *_lines(group / "cpu.cfs_period_us")])
        quotas += _cores(" ".join(_lines(group / "cpu.max")).split())
    return min(quotas)


def groups(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """The folders of this process's cgroup and of those above it, of version 2 and of the controller's of version 1,
    whether or not they are there."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        folder = mount / path.lstrip("/")
        # In a container the path may be the host's: then only the mount itself is there.
        for place in (folder, *folder.parents):
            yield place
            if place == mount:
                break


def _cores(values: list[str]) -> list[float]:
    """Quota by period, in microseconds: "max 100000" and "-1" are none."""
    if len(values) != 2 or not all(value.isdigit() for value in values) or int(values[1]) == 0:
        return []
    return [int(values[0]) / int(values[1])]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
