"""scoring/cores.py: affinity and the quotas of cgroups, of which a made-up tree tells here."""

import os
from pathlib import Path

import pytest

from gender_batch.scoring.cores import usable_cores


def machine(root: Path, cgroup: str, **files: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("cpu_", "cpu.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


V1 = {"cpu__cpu_cfs_quota_us": "300000\n", "cpu__cpu_cfs_period_us": "100000\n"}


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/\n", {}, 8),
        ("0::/\n", {"cpu_max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu_max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu_max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu_max": "5000 100000\n"}, 1),
        ("0::/\n", {"cpu_max": "0 100000\n"}, 1),
        ("0::/\n", {"cpu_max": "1600000 100000\n"}, 8),
        ("0::/\n", {"cpu_max": "nonsense"}, 8),
        ("0::/\n", {"cpu_max": "100000 0\n"}, 8),
        ("0::/a/b\n", {"a__b__cpu_max": "max 100000\n", "a__cpu_max": "400000 100000\n"}, 4),
        ("0::/a/b\n", {"a__b__cpu_max": "300000 100000\n", "a__cpu_max": "400000 100000\n"}, 3),
        ("0::/of/the/host\n", {"cpu_max": "500000 100000\n"}, 5),
        ("0::/cri:containerd:1\n", {"cpu_max": "500000 100000\n"}, 5),
        ("0::/\n", {"cpu_max__a_folder": "500000 100000\n"}, 8),
        ("4:memory:/\n3:cpu,cpuacct:/\n0::/\n", V1, 3),
        ("3:cpu,cpuacct:/of/the/host\n", V1, 3),
        ("3:cpu:/\n", {**V1, "cpu__cpu_cfs_quota_us": "-1\n"}, 8),
        ("3:cpuset:/\n", V1, 8),
    ],
)
def test_the_least_quota_counts(tmp_path: Path, cgroup: str, files: dict[str, str], expected: int) -> None:
    assert usable_cores(machine(tmp_path, cgroup, **files)) == expected


def test_without_cgroups_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_cores(tmp_path) == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert usable_cores(tmp_path) == 1
