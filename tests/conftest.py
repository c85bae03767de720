"""What all tests share: where the real photos are."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest
from installed import REPOSITORY

# Tests run side by side, one per core: threads of torch and numpy would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Whether there is a face detector is for each test to say: neither one of the shell's, nor one that was fetched.
os.environ.pop("GENDER_BATCH_DETECTOR", None)
os.environ["XDG_DATA_HOME"] = os.devnull


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photos and weights, which are not in the repository."""
    folder = Path(os.environ.get("GENDER_BATCH_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "faces").is_dir():
        pytest.skip(f"real photos are not at {folder}; set GENDER_BATCH_SHARED to the folder that holds faces/")
    return folder


@pytest.fixture(scope="session")
def test_faces(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FairFace's 2,000 test pictures: test/female, test/male."""
    folder = tmp_path_factory.mktemp("fairface-test")
    with tarfile.open(shared / "faces" / "fairface-test.tar") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def faces(test_faces: Path) -> list[Path]:
    """60 of the pictures, of both labels."""
    return [path for label in ("female", "male") for path in sorted((test_faces / "test" / label).iterdir())[:30]]


@pytest.fixture(scope="session")
def initial_weights(shared: Path) -> Path:
    return shared / "weights" / "mobilenet_v2-imagenet.pth"


@pytest.fixture(scope="session")
def detector(shared: Path) -> Path:
    return shared / "models" / "face_detection_yunet_2023mar.onnx"


@pytest.fixture(scope="session")
def labelled(test_faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small folder as a user would have it: <class>/<person>_<n>.jpg, 30 people in each class, two photos each."""
    folder = tmp_path_factory.mktemp("labelled")
    for label in ("female", "male"):
        (folder / label).mkdir()
        for number, path in enumerate(sorted((test_faces / "test" / label).iterdir())[:60]):
            (folder / label / f"{label[0]}{number // 2}_{number % 2}.jpg").write_bytes(path.read_bytes())
    return folder
