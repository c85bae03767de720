"""`gender-batch doctor` on machines that really lack a piece: a driver from C, packages and model files left out."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from installed import COMMAND, REPOSITORY, gender_batch

ONNXRUNTIME = Path(importlib.util.find_spec("onnxruntime").origin).parent  # type: ignore[union-attr,arg-type]
NVIDIA = ONNXRUNTIME.parent / "nvidia"
CUDA = NVIDIA / "cu13" / "lib"

needs_libraries = pytest.mark.skipif(
    not (CUDA / "libcurand.so.10").exists(), reason="NVIDIA's libraries for CUDA 13 are not installed"
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a libcuda.so.1."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("the driver is made by a C compiler, and there is none")
    folder = tmp_path_factory.mktemp("driver")
    source = Path(__file__).with_name("driver.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "libcuda.so.1", source], check=True)
    return folder


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of packages that are found before those installed: onnxruntime, and NVIDIA's libraries beside it."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "onnxruntime").symlink_to(ONNXRUNTIME)
    for kind in ("cu13", "cudnn"):
        (folder / "nvidia" / kind / "lib").mkdir(parents=True)
        for library in (NVIDIA / kind / "lib").glob("lib*.so*"):
            (folder / "nvidia" / kind / "lib" / library.name).symlink_to(library)
    (folder / "nvidia" / "__init__.py").touch()  # so that no other folder of that name counts
    return folder


def examined(
    *options: str | Path, site: Path | None = None, driver: Path | None = None, **environment: str
) -> tuple[int, dict[str, dict[str, str]]]:
    """The exit code, and the worst finding of each check."""
    environment |= {"PYTHONPATH": str(site)} if site else {}
    environment |= {"LD_LIBRARY_PATH": str(driver)} if driver else {}
    result = subprocess.run(
        [sys.executable, "-m", "gender_batch", "doctor", "--json", *options],
        env=os.environ | environment, cwd=site, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert not result.stderr, result.stderr.decode()
    told = json.loads(result.stdout)
    order = ["ok", "note", "problem"]
    checks: dict[str, dict[str, str]] = {}
    for finding in sorted(told["checks"], key=lambda finding: order.index(finding["level"])):
        checks[finding["check"]] = finding
    assert told["problems"] == sum(finding["level"] == "problem" for finding in told["checks"])
    return result.returncode, checks


def test_a_machine_without_a_gpu_is_fine_unless_one_is_wanted(tmp_path: Path) -> None:
    result = gender_batch("doctor", tmp_path, "--device", "cpu")
    assert (result.returncode, result.stderr) == (0, b"")
    lines = result.stdout.decode().splitlines()
    assert lines[-1] == "0 problems"
    assert [line.split(":")[0].split(maxsplit=1) for line in lines[:3]] == [
        ["ok", "onnxruntime"], ["ok", "device"], ["ok", "models"],
    ]  # fmt: skip
    assert not list(tmp_path.iterdir())  # what was tried there is gone


@pytest.mark.parametrize(
    ("environment", "found", "remedy"),
    [
        ({"DRIVER_VERSION": "12040"}, "driver is for CUDA 12.4, this onnxruntime-gpu for CUDA 13", "<1.27"),
        ({"DRIVER_VERSION": "11080"}, "driver is for CUDA 11.8", "580 or newer"),
        ({"DRIVER_INIT": "999"}, "unknown error", "nvidia-smi"),
        ({"DRIVER_INIT": "3"}, "error 3", "nvidia-smi"),
        ({"DRIVER_DEVICES": "0"}, "shows no GPU", "nvidia-smi"),
        ({"DRIVER_INIT": "100"}, "shows no GPU", "nvidia-smi"),
        ({"DRIVER_INIT": "100", "CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES is ''", "unset"),
    ],
)
def test_a_driver_that_does_not_do(driver: Path, environment: dict[str, str], found: str, remedy: str) -> None:
    code, checks = examined(driver=driver, **environment)
    assert (code, checks["device"]["level"]) == (1, "problem")
    assert found in checks["device"]["found"]
    assert remedy in checks["device"]["remedy"]
    if remedy != "<1.27":
        assert "<1.27" not in checks["device"]["remedy"]  # a version for CUDA 12 helps no other driver


@needs_libraries
@pytest.mark.parametrize(
    ("gone", "packages"),
    [
        (["libcurand.so.10"], "nvidia-curand"),
        (["libcublas.so.13", "libcublasLt.so.13"], "nvidia-cublas"),
        (["libcudnn.so.9", "libcufft.so.12"], "nvidia-cufft nvidia-cudnn-cu13"),
    ],
)
def test_each_library_that_is_missing_is_named(site: Path, driver: Path, gone: list[str], packages: str) -> None:
    for library in gone:
        next(site.rglob(library)).unlink()
    code, checks = examined(site=site, driver=driver)
    assert code == 1
    assert all(library in checks["device"]["found"] for library in gone)
    assert checks["device"]["remedy"] == f"pip install {packages}"


@needs_libraries
def test_libraries_are_found_elsewhere_than_beside_the_runtime(tmp_path: Path, driver: Path) -> None:
    """As where they were installed for a user, or for an environment below this one."""
    (tmp_path / "onnxruntime").symlink_to(ONNXRUNTIME)
    code, checks = examined(site=tmp_path, driver=driver)
    assert (code, checks["device"]["level"]) == (1, "problem")  # the driver only pretends
    assert "not found" not in checks["device"]["found"]


@needs_libraries
def test_a_driver_that_only_pretends_costs_a_problem_and_no_crash(site: Path, driver: Path) -> None:
    code, checks = examined(site=site, driver=driver)
    assert (code, checks["device"]["level"]) == (1, "problem")
    assert checks["device"]["remedy"]


def test_a_runtime_without_cuda(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text(
        "def get_available_providers(): return ['CPUExecutionProvider']\ndef get_version_string(): return '1.0'\n"
    )
    code, checks = examined(site=tmp_path)
    assert code == 1
    assert "without CUDA" in checks["device"]["found"]
    assert "pip install onnxruntime-gpu" in checks["device"]["remedy"]


def test_a_processor_for_which_there_is_no_runtime_with_cuda(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text(
        "def get_available_providers(): return ['CPUExecutionProvider']\ndef get_version_string(): return '1.0'\n"
    )
    (tmp_path / "sitecustomize.py").write_text("import platform; platform.machine = lambda: 'aarch64'")
    _, checks = examined(site=tmp_path)
    assert checks["device"]["level"] == "note"
    assert "for aarch64 machines there is no onnxruntime with CUDA" in checks["device"]["found"]
    assert checks["device"].get("remedy") is None


def test_half_a_runtime(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime").mkdir()  # what `pip uninstall` of one of two leaves behind
    (tmp_path / "onnxruntime" / "__init__.py").write_text("raise ImportError('no _pybind_state')")
    code, checks = examined(site=tmp_path)
    assert code == 1
    for check in ("onnxruntime", "device"):
        assert checks[check]["level"] == "problem"
        assert "_pybind_state" in checks[check]["found"]


def test_two_runtimes_over_each_other(tmp_path: Path) -> None:
    information = tmp_path / "onnxruntime-1.99.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime\nVersion: 1.99.0\n")
    code, checks = examined(site=tmp_path)
    assert (code, checks["onnxruntime"]["level"]) == (1, "problem")
    assert "onnxruntime 1.99.0 and onnxruntime-gpu 1." in checks["onnxruntime"]["found"]
    assert checks["onnxruntime"]["remedy"].startswith("pip uninstall -y onnxruntime onnxruntime-gpu;")


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_model_file_that_is_not_as_shipped(tmp_path: Path, damage: str) -> None:
    shutil.copytree(REPOSITORY / "gender_batch", tmp_path / "gender_batch")
    file = tmp_path / "gender_batch" / "model" / "default" / "apparent-gender.onnx"
    if damage == "gone":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    code, checks = examined(site=tmp_path)
    assert (code, checks["models"]["level"]) == (1, "problem")
    assert checks["models"]["found"].endswith("missing or damaged: apparent-gender.onnx")


def test_a_detector_that_is_another_file(tmp_path: Path) -> None:
    (tmp_path / "yunet.onnx").write_bytes(b"another")
    for name, told in (("yunet.onnx", "SHA-256"), ("none.onnx", "no such file")):
        code, checks = examined("--device", "cpu", GENDER_BATCH_DETECTOR=str(tmp_path / name))
        assert (code, checks["face detector"]["level"]) == (1, "problem")
        assert told in checks["face detector"]["found"]


def test_shared_memory_that_cannot_be_written_is_a_problem_for_a_run_too(tmp_path: Path) -> None:
    changed = ["unshare", "--mount", "bash", "-c", 'mount -t tmpfs -o ro tmpfs /dev/shm && exec "$@"', "bash"]
    if subprocess.run([*changed, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    result = subprocess.run([*changed, COMMAND, "doctor", "--json"], capture_output=True, check=False)
    checks = {finding["check"]: finding for finding in json.loads(result.stdout)["checks"]}
    assert (result.returncode, checks["shared memory"]["level"]) == (1, "problem")
    assert "mount a tmpfs" in checks["shared memory"]["remedy"]
    command = ["classify", REPOSITORY / "examples" / "profiles", "--out", tmp_path / "rows.csv"]
    result = subprocess.run([*changed, COMMAND, *command], capture_output=True, check=False)
    assert (result.returncode, (tmp_path / "rows.csv").exists()) == (1, False)


def test_a_folder_and_limits_that_do_not_do() -> None:
    limited = ["bash", "-c", 'ulimit -n 90 -v 3000000 -f 100000; exec "$@"', "bash"]
    command = [COMMAND, "doctor", "/sys/fs", "--json", "--workers", "7", "--device", "cpu"]
    result = subprocess.run([*limited, *command], capture_output=True, check=False)
    assert result.returncode == 1, result.stderr
    told = [
        (finding["check"], finding["level"], finding["remedy"])
        for finding in json.loads(result.stdout)["checks"]
        if finding["level"] != "ok" and finding["check"] != "face detector"
    ]  # fmt: skip
    assert [item[:2] for item in told] == [
        ("folder", "problem"), ("open files", "problem"), ("memory", "note"), ("memory", "note"),
    ]  # fmt: skip
    assert "make room" in told[0][2]  # there is no disk behind it
    assert [item[2] for item in told[2:]] == ["ulimit -v unlimited", "ulimit -f unlimited"]
