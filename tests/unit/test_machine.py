"""What the doctor knows without asking a machine: NVIDIA's devices and packages, digests, and checks that break."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from gender_batch.cli import main
from gender_batch.model import cuda
from gender_batch.model.cuda import has_nvidia_gpu, libraries
from gender_batch.scoring import cores, doctor
from gender_batch.scoring.doctor import MODEL_FOLDERS, SUMS, Found, Level, Plan, damaged, examine


@pytest.mark.parametrize(
    ("vendor", "kind", "is_gpu"),
    [
        ("0x10de", "0x030000", True),
        ("0x10de", "0x030200", True),  # a 3D controller: GPUs of servers
        ("0x10de", "0x040300", False),  # the sound of a graphics card
        ("0x8086", "0x030000", False),
    ],
)
def test_a_gpu_is_seen_on_the_bus_without_its_driver(tmp_path: Path, vendor: str, kind: str, is_gpu: bool) -> None:
    device = tmp_path / "0000:01:00.0"
    device.mkdir()
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{kind}\n")
    (tmp_path / "0000:02:00.0").mkdir()  # one that tells nothing
    assert has_nvidia_gpu(tmp_path) is is_gpu
    assert not has_nvidia_gpu(tmp_path / "none")


def test_packages_of_cuda_12_and_13() -> None:
    assert libraries(13)["libcurand.so.10"] == "nvidia-curand"
    assert libraries(12)["libcurand.so.10"] == "nvidia-curand-cu12"
    assert libraries(12)["libcufft.so.11"] == "nvidia-cufft-cu12"
    assert {libraries(cuda)["libcudnn.so.9"] for cuda in (12, 13)} == {"nvidia-cudnn-cu12", "nvidia-cudnn-cu13"}


def test_kernels_can_be_compiled_as_cudnn_does_it() -> None:
    """With NVRTC, for a GPU that need not be here; in a process of its own, since torch loads what it needs, too."""
    if importlib.util.find_spec("nvidia") is None:
        pytest.skip("NVIDIA's libraries are not installed")
    script = """if True:
        import ctypes
        from gender_batch.model.cuda import libraries, load_libraries

        load_libraries()
        nvrtc = ctypes.CDLL(next(name for name in libraries(13) if "nvrtc" in name))
        program, options = ctypes.c_void_p(), (ctypes.c_char_p * 1)(b"--gpu-architecture=sm_90")
        source = b"__global__ void kernel(float *a) { *a = expf(*a); }"
        assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, None, 0, None, None) == 0
        assert nvrtc.nvrtcCompileProgram(program, 1, options) == 0
    """
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("folder", MODEL_FOLDERS, ids=lambda folder: folder.name)
def test_the_shipped_digests_are_those_of_the_shipped_files(folder: Path) -> None:
    assert damaged(folder) == [], f"cd {folder} && sha256sum *.onnx *.safetensors > {SUMS}"
    listed = {line.split()[1] for line in (folder / SUMS).read_text().splitlines()}
    assert listed == {path.name for path in folder.iterdir() if path.suffix in (".onnx", ".safetensors")}


def test_damage_is_named(tmp_path: Path) -> None:
    assert damaged(tmp_path) == [SUMS]
    digest = hashlib.sha256(b"model").hexdigest()
    (tmp_path / SUMS).write_text(f"{digest}  a.onnx\n{digest}  b.onnx\n{digest}  c.onnx\n")
    (tmp_path / "a.onnx").write_bytes(b"model")
    (tmp_path / "b.onnx").write_bytes(b"mode1")
    assert damaged(tmp_path) == ["b.onnx", "c.onnx"]


@pytest.mark.parametrize(
    ("cgroup", "files", "left"),
    [
        ("0::/\n", {}, sys.maxsize),
        ("0::/\n", {"memory.max": "max", "memory.current": "5"}, sys.maxsize),
        ("0::/a/b\n", {"a/b/memory.max": "9", "a/b/memory.current": "2"}, 7),
        ("0::/a/b\n", {"a/memory.max": "9", "a/memory.current": "4", "a/b/memory.max": "max"}, 5),
        ("0::/of/the/host\n", {"memory.max": "9", "memory.current": "3"}, 6),
        ("0::/\n", {"memory.max": "9", "memory.current": "10"}, 0),
        (
            "3:cpu:/\n2:memory:/a\n",
            {"memory/a/memory.limit_in_bytes": "8", "memory/a/memory.usage_in_bytes": "4"},
            4,
        ),
        (  # what is kept of files goes when memory is needed
            "0::/a\n",
            {
                "a/memory.max": "9",
                "a/memory.current": "8",
                "a/memory.stat": "anon 3\ninactive_file 4\nactive_file 1\nslab 0\n",
            },
            6,
        ),
        (
            "2:memory:/a\n",
            {
                "memory/a/memory.limit_in_bytes": "8",
                "memory/a/memory.usage_in_bytes": "8",
                "memory/a/memory.stat": "inactive_file 1\nactive_file 1\ntotal_inactive_file 3\ntotal_active_file 2\n",
            },
            5,
        ),
    ],
)
def test_the_least_that_control_groups_leave_counts(
    tmp_path: Path, cgroup: str, files: dict[str, str], left: int
) -> None:
    for name, content in {"../../../proc/self/cgroup": cgroup, **files}.items():
        path = Path(os.path.normpath(tmp_path / "sys/fs/cgroup" / name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert doctor._memory_of_group(tmp_path) == left


def test_a_container_s_quota_limits_the_workers_that_are_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: 3)
    told = json.loads(CliRunner().invoke(main, ["doctor", "--device", "cpu", "--json"]).stdout)
    assert sum("; 3 workers need" in check["found"] for check in told["checks"]) == 2


@pytest.mark.parametrize(
    ("device", "remedy", "level", "told"),
    [
        ("auto", None, Level.NOTE, None),
        ("auto", "install it", Level.PROBLEM, "install it"),
        ("cuda", None, Level.PROBLEM, "--device auto"),
        ("cuda", "install it", Level.PROBLEM, "install it"),
    ],
)
def test_that_there_is_no_gpu_is_a_problem_to_who_wants_one_or_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, remedy: str | None, level: Level, told: str | None
) -> None:
    monkeypatch.setattr(cuda, "missing_for_cuda", lambda: cuda.Missing("it is not there", remedy))
    monkeypatch.setattr(doctor, "CHECKS", {"device": doctor._device})
    (finding,) = examine(Plan(device, 1, tmp_path))
    assert (finding.level, finding.found, finding.remedy) == (level, "cpu: it is not there", told)


def test_a_gpu_that_takes_the_process_down_with_it_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "missing_for_cuda", lambda: None)
    monkeypatch.setattr(cuda, "missing_libraries", lambda: None)
    monkeypatch.setattr(doctor, "_score_on_gpu", partial(os._exit, 7))
    monkeypatch.setattr(doctor, "CHECKS", {"device": doctor._device})
    (finding,) = examine(Plan("auto", 1, tmp_path))
    assert (finding.level, finding.found) == (Level.PROBLEM, "cpu: the process that tried it died")
    assert finding.remedy


def test_less_room_than_a_run_needs_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CHECKS", {"folder": doctor._folder})
    (enough,) = examine(Plan("cpu", 1, tmp_path))
    monkeypatch.setattr(doctor, "LEAST_FREE", 2**62)
    (little,) = examine(Plan("cpu", 1, tmp_path))
    assert (enough.level, little.level, little.remedy) == (Level.OK, Level.PROBLEM, "make room")


@pytest.mark.parametrize(
    ("blocks", "inodes", "inodes_left", "told"),
    [
        (10**9, 10, 1, None),
        (1, 10, 1, "make room"),  # what is left to this user counts, not what the disk has
        (10**9, 10, 0, "remove files"),
        (10**9, 0, 0, None),  # of a file system that makes them as they are needed
    ],
)
def test_a_folder_needs_room_and_inodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: int, inodes: int, inodes_left: int, told: str | None
) -> None:
    volume = os.statvfs_result((4096, 4096, 10**9, 10**9, blocks, inodes, inodes_left, inodes_left, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: volume)
    monkeypatch.setattr(doctor, "CHECKS", {"folder": doctor._folder})
    (finding,) = examine(Plan("cpu", 1, tmp_path))
    assert (finding.level, finding.remedy) == (Level.PROBLEM if told else Level.OK, told)


def test_a_folder_without_locks_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", without)
    monkeypatch.setattr(doctor, "CHECKS", {"folder": doctor._folder})
    (finding,) = examine(Plan("cpu", 1, tmp_path))
    assert finding.level is Level.PROBLEM
    assert os.strerror(errno.ENOLCK) in finding.found


@pytest.mark.parametrize(
    ("soft", "hard", "remedy"),
    [
        (120, 120, None),
        (119, 4096, "ulimit -n 120"),
        (119, 119, "LimitNOFILE=120 in the service, or fewer --workers"),
        (119, resource.RLIM_INFINITY, "ulimit -n 120"),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, None),
    ],
)
def test_workers_need_open_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, remedy: str | None
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(doctor, "CHECKS", {"open files": doctor._open_files})
    (finding,) = examine(Plan("cpu", 7, tmp_path))
    assert (finding.level, finding.remedy) == (Level.PROBLEM if remedy else Level.OK, remedy)


@pytest.mark.parametrize(
    ("free", "of_group", "found", "remedy"),
    [
        (2**30, sys.maxsize, "1.1 GB available; 4 workers need 1.1 GB", None),
        (2**30 - 1, sys.maxsize, "1.1 GB available; 4 workers need 1.1 GB", "--workers 3"),
        (2**40, 2**27, "134 MB available; 4 workers need 1.1 GB", "--workers 1"),
    ],
)
def test_workers_need_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, of_group: int, found: str, remedy: str | None
) -> None:
    monkeypatch.setattr(doctor, "_free_memory", lambda: free)
    monkeypatch.setattr(doctor, "_memory_of_group", lambda: of_group)
    monkeypatch.setattr(doctor, "CHECKS", {"memory": doctor._memory})
    finding, *_ = examine(Plan("cpu", 4, tmp_path))
    assert (finding.level, finding.found, finding.remedy) == (Level.PROBLEM if remedy else Level.OK, found, remedy)


def test_free_memory_is_in_bytes() -> None:
    all_of_it = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert all_of_it / 500 < doctor._free_memory() <= all_of_it


def test_a_check_that_breaks_is_a_problem_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(_: Plan) -> Iterator[Found]:
        yield Level.OK, "so far"
        raise FileNotFoundError(2, "No such file or directory", "/proc/meminfo")

    monkeypatch.setattr(doctor, "CHECKS", {"odd": breaks, "last": lambda _: [(Level.OK, "told")]})
    findings = list(examine(Plan("cpu", 1, tmp_path)))
    assert [(finding.check, finding.level) for finding in findings] == [
        ("odd", Level.OK), ("odd", Level.PROBLEM), ("last", Level.OK),
    ]  # fmt: skip
    assert "/proc/meminfo" in findings[1].found
