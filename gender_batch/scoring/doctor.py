"""What this machine has, and what it lacks, for a run: one finding per check, each with what mends it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import hashlib
import multiprocessing
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from gender_batch.faces.fetch import GET_IT, DetectorError, find_detector, verified
from gender_batch.model import cuda
from gender_batch.prediction import Prediction, Status
from gender_batch.scoring.cores import groups
from gender_batch.scoring.state import LEAST_FREE, State, StateError

SUMS = "SHA256SUMS"
"""In a folder of shipped models: their digests, as `sha256sum` writes and checks them."""

FILES_PER_WORKER = 8
"""Open files that the parent has for each worker: its pipes and its sentinel, and those of a worker in its place."""

FILES_BESIDE = 64
"""Open files for everything else: libraries, the state, the output."""

SHARED_MEMORY = 1024 * 1024
"""Bytes: more than the numbers of some thousand workers take."""

MEMORY_PER_WORKER = 256 * 1024 * 1024
"""Bytes: a worker with its model and an ordinary picture in hand."""

LARGEST_DIFFERENCE = 0.1
"""Between probabilities in float16 on a GPU and int8 on a CPU; a GPU that computes nonsense is further off."""

MODEL_FOLDERS = (Path(cuda.__file__).parent / "default",)
"""Shipped models, each folder with its digests."""


class Level(StrEnum):
    """`problem`: mend it before a run. `note`: good to know."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """What one check has found. `remedy` is what mends a problem, as a command where one does."""

    check: str
    level: Level
    found: str
    remedy: str | None = None


@dataclass(frozen=True)
class Plan:
    """The run that is meant: on which device ("auto", "cuda" or "cpu"), with how many workers, and in which folder its
    output and state will lie."""

    device: str
    workers: int
    folder: Path


def examine(plan: Plan) -> Iterator[Finding]:
    """The findings of all checks, as they come. Raises nothing: a check that cannot be made is a problem, too."""
    for name, check in CHECKS.items():
        try:
            yield from (Finding(name, *found) for found in check(plan))
        except Exception as error:  # noqa: BLE001 - an odd machine is what this is for
            yield Finding(name, Level.PROBLEM, f"it cannot be told: {type(error).__name__}: {error}")


Found = tuple[Level, str] | tuple[Level, str, str | None]


def _runtime(_: Plan) -> Iterator[Found]:
    installed = cuda.runtimes_installed()
    if len(installed) > 1:
        yield Level.PROBLEM, f"{' and '.join(installed)} are installed over each other", cuda.REINSTALL
        return
    try:
        import onnxruntime

        version = onnxruntime.get_version_string()
    except Exception as error:  # noqa: BLE001 - half an installation raises anything
        yield Level.PROBLEM, f"onnxruntime cannot be imported: {error}", cuda.REINSTALL
        return
    yield Level.OK, ", ".join(installed) or f"onnxruntime {version}"


def _device(plan: Plan) -> Iterator[Found]:
    if plan.device == "cpu":
        yield Level.OK, "cpu, as asked for"
        return
    missing = cuda.missing_for_cuda()
    if missing is None:
        try:
            answer = _in_a_process(_score_on_gpu)
        except concurrent.futures.BrokenExecutor:
            answer = "the process that tried it died"
        if answer is None:
            yield Level.OK, f"cuda: {cuda.gpu_name()}; pictures were scored on it"
            return
        missing = cuda.missing_libraries() or cuda.Missing(answer, "pip install --upgrade 'gender-batch[cuda]'")
    # A GPU that is there and lies idle is a problem; that there is none is one only to who wants it.
    level = Level.PROBLEM if missing.remedy or plan.device == "cuda" else Level.NOTE
    yield level, f"cpu: {missing.what}", missing.remedy or ("--device auto" if level is Level.PROBLEM else None)


def _models(_: Plan) -> Iterator[Found]:
    for folder in MODEL_FOLDERS:
        if broken := damaged(folder):
            told = f"{folder}: missing or damaged: {', '.join(broken)}"
            yield Level.PROBLEM, told, "pip install --force-reinstall --no-deps gender-batch"
        else:
            yield Level.OK, f"{folder}: every file is as it was shipped"


def damaged(folder: Path) -> list[str]:
    """The files in the folder's SHA256SUMS that are not there, or not as it says; the list itself if it is not."""
    try:
        lines = (folder / SUMS).read_text().splitlines()
    except OSError:
        return [SUMS]
    return [name for digest, name in (line.split(maxsplit=1) for line in lines) if _sha256(folder / name) != digest]


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _detector(_: Plan) -> Iterator[Found]:
    try:
        place = find_detector()
        if place is None:
            yield Level.NOTE, f"none: the program's own model takes whole photos for face crops. {GET_IT}"
        else:
            verified(place)
            yield Level.OK, f"{place}: it is the right one"
    except DetectorError as error:
        yield Level.PROBLEM, str(error)


def _folder(plan: Plan) -> Iterator[Found]:
    """Whether output and state can be kept there: some network file systems have neither locks nor shared memory."""
    volume = os.statvfs(plan.folder)
    free = volume.f_bavail * volume.f_frsize
    if free < LEAST_FREE:
        yield Level.PROBLEM, f"{plan.folder}: {_size(free)} free; a run stops below {_size(LEAST_FREE)}", "make room"
        return
    if volume.f_files and not volume.f_favail:
        yield Level.PROBLEM, f"{plan.folder}: no inode is free", "remove files"
        return
    try:
        with (
            tempfile.TemporaryDirectory(dir=plan.folder, prefix=".gender-batch.") as name,
            State(Path(name) / "state", "doctor") as state,
            (Path(name) / "lock").open("w") as file,
        ):
            state.record(state.expect(b"/picture", None), Prediction("/picture", Status.EMPTY))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (OSError, StateError) as error:
        elsewhere = "put --out and --state into a folder that this user may write, on a local disk"
        yield Level.PROBLEM, f"{plan.folder}: {error}", elsewhere
        return
    yield Level.OK, f"{plan.folder}: {_size(free)} free; files, locks and a state can be kept"


def _open_files(plan: Plan) -> Iterator[Found]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES_BESIDE + FILES_PER_WORKER * plan.workers
    if soft != resource.RLIM_INFINITY and soft < needed:
        may = hard == resource.RLIM_INFINITY or hard >= needed
        remedy = f"ulimit -n {needed}" if may else f"LimitNOFILE={needed} in the service, or fewer --workers"
        yield Level.PROBLEM, f"{soft:,} open files are allowed; {plan.workers} workers need {needed}", remedy
    else:
        yield Level.OK, f"{_limit(soft)} open files are allowed; {plan.workers} workers need {needed}"


def _memory(plan: Plan) -> Iterator[Found]:
    needed, available = plan.workers * MEMORY_PER_WORKER, min(_free_memory(), _memory_of_group())
    told = f"{_size(available)} available; {plan.workers} workers need {_size(needed)}"
    if available < needed:
        yield Level.PROBLEM, told, f"--workers {max(1, available // MEMORY_PER_WORKER)}"
    else:
        yield Level.OK, told
    for limit, consequence, remedy in (
        (resource.RLIMIT_AS, "of address space: large pictures will be too_large", "ulimit -v unlimited"),
        (resource.RLIMIT_FSIZE, "is how large output and state may get", "ulimit -f unlimited"),
    ):
        soft, _hard = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            yield Level.NOTE, f"{_size(soft)} {consequence}", remedy


def _free_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _memory_of_group(root: Path = Path("/")) -> int:
    """Bytes that its control groups leave this process; a service's MemoryMax and a container's limit are told there.

    Of version 2, `memory.max` (cgroup-v2.rst), and of version 1, `memory.limit_in_bytes` (cgroup-v1/memory.rst).
    """
    left = sys.maxsize
    for group in groups("memory", root):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            with contextlib.suppress(OSError, ValueError):  # not there, or "max"
                free = int((group / limit).read_text()) - int((group / used).read_text())
                left = min(left, free + _cached(group))
    return max(0, left)


def _cached(group: Path) -> int:
    """Bytes of a control group's memory that hold nothing but content of files, and are given back when needed."""
    with contextlib.suppress(OSError):
        lines = (group / "memory.stat").read_text().splitlines()
        values = {name: int(value) for name, _, value in (line.partition(" ") for line in lines)}
        total = "total_" if "total_inactive_file" in values else ""  # version 1: with the groups below
        return values.get(f"{total}inactive_file", 0) + values.get(f"{total}active_file", 0)
    return 0


def _shared_memory(_: Plan) -> Iterator[Found]:
    """Workers and their parent share a few bytes there; where there is too little room they take the folder for
    temporary files."""
    folder = Path("/dev/shm")  # noqa: S108 - it is what is examined
    try:
        volume = os.statvfs(folder)
        with tempfile.TemporaryFile(dir=folder):
            free = volume.f_bavail * volume.f_frsize
    except OSError as error:
        yield Level.PROBLEM, f"{folder}: {error.strerror}", "mount a tmpfs there that this user may write"
        return
    if free < SHARED_MEMORY:
        yield Level.NOTE, f"{folder}: {_size(free)} free, {_size(SHARED_MEMORY)} wanted", "remove files"
    else:
        yield Level.OK, f"{folder}: {_size(free)} free"


def _in_a_process(work: Callable[[], str | None]) -> str | None:
    """The result of a function in a process of its own, which may crash. Raises BrokenExecutor then."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(work).result()


def _score_on_gpu() -> str | None:
    """Why grey pictures do not get the answer on the GPU that one gets on the CPU; None where they do."""
    import numpy as np

    from gender_batch.model.session import Model
    from gender_batch.scoring.batches import GPU_BATCH

    answers = []
    try:
        for device, batch in (("cpu", 1), ("cuda", GPU_BATCH)):
            model = Model(None, device)
            size = model.metadata.preprocessing.size
            answers.append(model.bound(batch)(np.full((batch, size, size, 3), 127, np.uint8)))
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's own errors share no public base class
        return f"the GPU cannot score: {error}"
    difference = float(np.abs(answers[0] - answers[1]).max())
    return None if difference < LARGEST_DIFFERENCE else f"GPU and CPU differ by {difference:.3f} in a probability"


def _limit(number: int) -> str:
    return "any number of" if number == resource.RLIM_INFINITY else f"{number:,}"


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


CHECKS: dict[str, Callable[[Plan], Iterator[Found]]] = {
    "onnxruntime": _runtime,
    "device": _device,
    "models": _models,
    "face detector": _detector,
    "folder": _folder,
    "open files": _open_files,
    "memory": _memory,
    "shared memory": _shared_memory,
}
