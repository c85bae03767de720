"""Whether ONNX Runtime can use CUDA on this machine, and if not, the exact missing piece and what mends it."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the doctor needs none of it, and may find it missing
    from numpy.typing import NDArray

DRIVERS = {11: 450, 12: 525, 13: 580}
"""The oldest Linux driver for each CUDA major (CUDA Compatibility, "minor version compatibility", table 2)."""

LAST_FOR_CUDA_12 = "'onnxruntime-gpu[cuda,cudnn]<1.27'"
"""From 1.27 on the package index has onnxruntime-gpu for CUDA 13 only."""

NVIDIA_VENDOR, DISPLAY_CLASS = "0x10de", "0x03"
"""PCI's number for NVIDIA, and how its numbers for display controllers, 3D controllers among them, begin."""

NO_DEVICE = 100
"""CUDA_ERROR_NO_DEVICE (CUDA Driver API, CUresult): what cuInit says if there is no GPU, or if none is visible."""

ALLOCATION_FAILED = 2
"""cudaErrorMemoryAllocation (CUDA Runtime API, cudaError_t): who asks for the free memory has no room for a context."""

LITTLE = 128 * 1024 * 1024
"""Bytes of the GPU's memory: with less left any step may fail."""

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Names the GPUs that a process may see (CUDA C++ Programming Guide, "CUDA Environment Variables")."""

RUNTIME = "onnxruntime-gpu" if platform.machine() == "x86_64" else "onnxruntime"
"""The distribution that setup.cfg names: with CUDA there are files for these machines alone."""

REINSTALL = f"pip uninstall -y onnxruntime onnxruntime-gpu; pip install {RUNTIME}"
"""The two distributions are one package: to uninstall one of them takes files from the other."""


@dataclass(frozen=True)
class Missing:
    """Why CUDA cannot be used. `remedy` is None where there is nothing to mend: no NVIDIA GPU is to be seen."""

    what: str
    remedy: str | None = None

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}" if self.remedy else self.what


def missing_for_cuda() -> Missing | None:
    """What of build, driver and device is missing; None where a session may be tried, which alone tells the rest.

    Loads NVIDIA's libraries into this process, so that a session finds them.
    """
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        if RUNTIME == "onnxruntime":
            return Missing(f"for {platform.machine()} machines there is no onnxruntime with CUDA")
        both = " (it has overwritten onnxruntime-gpu, which is installed too)" if len(runtimes_installed()) > 1 else ""
        return Missing(f"this onnxruntime is built without CUDA{both}", REINSTALL)
    missing = _missing_driver(_built_for())
    if missing is None:
        load_libraries()
    return missing


def load_libraries() -> None:
    """Load those of NVIDIA's libraries that pip has installed.

    ONNX Runtime looks for them only beside itself, and forgets one: NVRTC, with which cuDNN compiles kernels, does not
    look for its builtins beside itself.
    """
    import onnxruntime

    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find, where rows may go
        onnxruntime.preload_dlls()
    nvidia = importlib.util.find_spec("nvidia")
    for folder in (nvidia and nvidia.submodule_search_locations) or ():
        for name in (*libraries(_built_for()), "libnvrtc-builtins.so.*"):
            for library in Path(folder).glob(f"*/lib/{name}"):
                _loads(str(library))


def missing_libraries() -> Missing | None:
    """NVIDIA's libraries that cannot be loaded, after `missing_for_cuda`: why a session did not get CUDA.

    Which of them a session really needs depends on version and model, so none of them is a reason not to try.
    """
    built = _built_for()
    missing = {file: distribution for file, distribution in libraries(built).items() if not _loads(file)}
    if not missing:
        return None
    return Missing(
        f"{', '.join(missing)} not found, which onnxruntime-gpu for CUDA {built} needs",
        f"pip install {' '.join(dict.fromkeys(missing.values()))}",
    )


def runtimes_installed() -> list[str]:
    """The installed distributions that bring the package onnxruntime, as "name version"; more than one is wrong."""
    found = set()
    for distribution in metadata.distributions():
        name = (distribution.name or "").lower().replace("_", "-")  # None: a damaged distribution
        if name in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml"):
            found.add(f"{name} {distribution.version}")
    return sorted(found)


def has_nvidia_gpu(devices: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Whether an NVIDIA display controller is on the PCI bus, with or without a driver."""
    return any(
        _line(device / "vendor") == NVIDIA_VENDOR and _line(device / "class").startswith(DISPLAY_CLASS)
        for device in devices.glob("*")
    )


def libraries(cuda: int) -> Mapping[str, str]:
    """NVIDIA's libraries that ONNX Runtime built for this CUDA major loads: the file, and the distribution with it."""
    ending = "" if cuda >= 13 else f"-cu{cuda}"
    return {
        f"libcudart.so.{cuda}": f"nvidia-cuda-runtime{ending}",
        f"libcublasLt.so.{cuda}": f"nvidia-cublas{ending}",
        f"libcublas.so.{cuda}": f"nvidia-cublas{ending}",
        "libcurand.so.10": f"nvidia-curand{ending}",
        f"libcufft.so.{cuda - 1}": f"nvidia-cufft{ending}",
        f"libnvrtc.so.{cuda}": f"nvidia-cuda-nvrtc{ending}",
        "libcudnn.so.9": f"nvidia-cudnn-cu{cuda}",
    }


@contextlib.contextmanager
def page_locked(array: NDArray[Any]) -> Iterator[bool]:
    """Keep the array's memory where it is, so that it is copied to the GPU without a detour; says whether that worked.

    (CUDA Runtime API, cudaHostRegister.) To be used after a session got CUDA. Copies work without it, too.
    """
    runtime = _runtime()
    if runtime is None:
        yield False
        return
    address = ctypes.c_void_p(array.ctypes.data)
    locked = runtime.cudaHostRegister(address, ctypes.c_size_t(array.nbytes), 0) == 0
    if not locked:
        runtime.cudaGetLastError()  # or whoever asks next would take the error for its own
    try:
        yield locked
    finally:
        if locked:
            runtime.cudaHostUnregister(address)


def is_full() -> bool:
    """Whether the GPU has next to no memory left, to be asked after an error: a library that finds no room for its
    kernels, loaded when they are first needed, says that it is not initialized, or failed, and not why.

    (CUDA Runtime API, cudaMemGetInfo; CUDA Programming Guide, "Lazy Loading".)
    """
    runtime = _runtime()
    if runtime is None:
        return False
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    code = runtime.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
    if code:
        runtime.cudaGetLastError()  # or whoever asks next would take the error for its own
        return bool(code == ALLOCATION_FAILED)
    return free.value < LITTLE


def _runtime() -> ctypes.CDLL | None:
    """CUDA's runtime library, which a session on a GPU has loaded."""
    try:
        return ctypes.CDLL(f"libcudart.so.{_built_for()}")
    except OSError:
        return None


def _missing_driver(built: int) -> Missing | None:
    """What the driver lacks; `built` is the CUDA major that ONNX Runtime is built for."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        what = "no NVIDIA driver on this machine (libcuda.so.1 is not found)"
        if has_nvidia_gpu():
            return Missing(what, f"install {_driver_for(built)}; in a container, start it with --gpus all")
        return Missing(what)
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) == 0 and version.value // 1000 < built:
        older = f", or pip install {LAST_FOR_CUDA_12}" if (built, version.value // 1000) == (13, 12) else ""
        return Missing(
            f"the NVIDIA driver is for CUDA {_version(version.value)}, this onnxruntime-gpu for CUDA {built}",
            f"install {_driver_for(built)}{older}",
        )
    count = ctypes.c_int()
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code == NO_DEVICE or (code == 0 and count.value == 0):
        if VISIBLE in os.environ:
            return Missing(f"the NVIDIA driver shows no GPU; {VISIBLE} is {os.environ[VISIBLE]!r}", f"unset {VISIBLE}")
        return Missing("the NVIDIA driver shows no GPU", "see that nvidia-smi lists one; under MIG, an instance of one")
    if code:
        return Missing(f"the NVIDIA driver does not start ({_error(driver, code)})", "see that nvidia-smi works")
    return None


def gpu_name() -> str:
    """What the driver calls its first GPU, and the CUDA version it is for. Only where `missing_for_cuda` is None."""
    driver = ctypes.CDLL("libcuda.so.1")
    name, version = ctypes.create_string_buffer(256), ctypes.c_int()
    driver.cuInit(0)
    driver.cuDeviceGetName(name, len(name), 0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    return f"{name.value.decode(errors='replace')}, driver for CUDA {_version(version.value)}"


def _built_for() -> int:
    """The CUDA major that ONNX Runtime is built for."""
    import onnxruntime

    return int((getattr(onnxruntime, "cuda_version", "") or "13").split(".")[0])


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _driver_for(cuda: int) -> str:
    return f"an NVIDIA driver for CUDA {cuda}" + (f" ({DRIVERS[cuda]} or newer)" if cuda in DRIVERS else "")


def _version(number: int) -> str:
    """13000 is 13.0 (CUDA Driver API, cuDriverGetVersion)."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _error(driver: ctypes.CDLL, code: int) -> str:
    text = ctypes.c_char_p()
    if driver.cuGetErrorString(code, ctypes.byref(text)) or not text.value:
        return f"error {code}"
    return text.value.decode(errors="replace")


def _line(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
