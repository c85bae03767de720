"""outputs/record.py: a run record comes back as it was written, and no other file passes for one."""

import dataclasses
import json
import platform
import stat
from collections import Counter
from pathlib import Path
from typing import Any

import numpy
import PIL
import pytest
import records
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gender_batch import __version__
from gender_batch.outputs.record import LARGEST_FILE, RecordError, RunRecord, Stage, versions
from gender_batch.prediction import Status

NIGHT = dataclasses.replace(
    records.NIGHT,
    versions=versions(),
    pictures=10,
    scored=4,
    reused=6,
    statuses={"ok": 8, "corrupt": 2},
    labels={"female": 4, "male": 3, "uncertain": 1},
    stages={"reading": Stage(4, 0.5), "inference": Stage(3, 0.25), "faces": Stage(0, 0.0)},
    folders_not_read=1,
    ended="2025-01-31T23:59:59.123456+00:00",
    exit_code=3,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def changed(path: Path, **fields: Any) -> Path:
    path.write_text(json.dumps({**json.loads(NIGHT.to_json()), **fields}))
    return path


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    NIGHT.write(tmp_path / "run.json")
    assert RunRecord.read(tmp_path / "run.json") == NIGHT
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert stat.S_IMODE((tmp_path / "run.json").stat().st_mode) == 0o600


def test_what_is_in_the_file() -> None:
    content = json.loads(NIGHT.to_json())
    assert next(iter(content)) == "record_version"
    assert content["record_version"] == 1
    assert content["program"] == __version__
    assert content["confidence"] == {"mean": 0.93, "std": 0.08}
    assert content["stages"]["reading"] == {"pictures": 4, "seconds": 0.5, "pictures_per_second": 8.0}
    assert content["stages"]["faces"]["pictures_per_second"] is None
    assert content.keys() == {field.name for field in dataclasses.fields(RunRecord)}


@pytest.mark.parametrize(("pictures", "seconds", "pace"), [(4, 0.5, 8.0), (0, 0.5, 0.0), (4, 0.0, None)])
def test_pictures_per_second(pictures: int, seconds: float, pace: float | None) -> None:
    assert Stage(pictures, seconds).pictures_per_second == pace


def test_the_counters_of_a_run_serve_as_they_are(tmp_path: Path) -> None:
    night = dataclasses.replace(
        NIGHT, statuses=Counter({Status.OK: 8, Status.CORRUPT: 2}), labels=Counter(NIGHT.labels)
    )
    assert night.answered == 8
    night.write(tmp_path / "run.json")
    assert RunRecord.read(tmp_path / "run.json") == NIGHT


def test_a_night_without_any_picture(tmp_path: Path) -> None:
    nothing = dataclasses.replace(NIGHT, pictures=0, scored=0, reused=0, statuses={}, labels={}, confidence=None)
    nothing.write(tmp_path / "run.json")
    assert RunRecord.read(tmp_path / "run.json") == nothing
    assert nothing.answered == 0


def test_a_field_that_a_later_program_added_does_no_harm(tmp_path: Path) -> None:
    assert RunRecord.read(changed(tmp_path / "run.json", weather="fine")) == NIGHT


def test_versions() -> None:
    found = versions()
    assert list(found) == ["python", "onnxruntime", "pillow", "numpy"]
    assert (found["python"], found["pillow"], found["numpy"]) == (
        platform.python_version(),
        PIL.__version__,
        numpy.__version__,
    )
    assert found["onnxruntime"][0].isdigit()


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(RecordError) as caught:
            RunRecord.read(path)
        assert str(path) in str(caught.value)
        assert "--summary" in str(caught.value)


def test_a_file_that_may_not_be_read(unprivileged: Path) -> None:
    path = unprivileged / "run.json"
    NIGHT.write(path)
    path.chmod(0)
    with pytest.raises(RecordError, match="Permission denied"):
        RunRecord.read(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"path,status\r\n", b"\xff\xfe\x00", b"null", b"7", b'"text"', b"[]", b"{}", b"[" * 100_000, b"\x00" * 100],
)
def test_a_file_of_another_kind(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"run\.json: not a run record.*--summary"):
        RunRecord.read(path)


def test_a_large_file_is_not_read_to_its_end() -> None:
    with pytest.raises(RecordError, match="not a run record"):
        RunRecord.read(Path("/dev/zero"))
    assert len(NIGHT.to_json()) * 100 < LARGEST_FILE


def test_a_record_cut_short_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    text = NIGHT.to_json().rstrip()
    for end in range(0, len(text), 7):
        path.write_text(text[:end])
        with pytest.raises(RecordError, match="cut short"):
            RunRecord.read(path)


def test_a_record_of_a_newer_program(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"of version 2, this program knows 1; update it: pip install -U"):
        RunRecord.read(changed(tmp_path / "run.json", record_version=2, pictures="many"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("record_version", True),
        ("record_version", "1"),
        ("record_version", 0),
        ("program", None),
        ("versions", {"numpy": 2}),
        ("versions", []),
        ("pictures", -1),
        ("pictures", 10.0),
        ("pictures", True),
        ("pictures", 10**400),
        ("statuses", {"ok": "8"}),
        ("statuses", [["ok", 8]]),
        ("labels", None),
        ("confidence", {}),
        ("confidence", {"mean": 1.1, "std": 0}),
        ("confidence", {"mean": True, "std": 0}),
        ("confidence", {"mean": float("nan"), "std": 0}),
        ("confidence", [0.9, 0.1]),
        ("stages", {"reading": 5}),
        ("stages", {"reading": {"pictures": 5, "seconds": float("inf")}}),
        ("stages", {"reading": {"pictures": 5, "seconds": 10**400}}),
        ("stages", {"reading": {"pictures": 5}}),
        ("started", "yesterday"),
        ("started", "2025-01-31T22:00:00"),
        ("ended", 1738360800),
        ("exit_code", None),
    ],
)
def test_a_field_of_the_wrong_kind(field: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=rf"run\.json: a damaged run record, wrong in {field}; .*--summary"):
        RunRecord.read(changed(tmp_path / "run.json", **{field: value}))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(RunRecord)])
def test_a_field_that_is_missing(field: str, tmp_path: Path) -> None:
    content = json.loads(NIGHT.to_json())
    del content[field]
    path = tmp_path / "run.json"
    path.write_text(json.dumps(content))
    with pytest.raises(RecordError):
        RunRecord.read(path)


@pytest.mark.parametrize("fields", [{"pictures": 11}, {"labels": {"female": 9}}, {"statuses": {"corrupt": 10}}])
def test_counts_that_contradict_each_other(fields: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="do not add up"):
        RunRecord.read(changed(tmp_path / "run.json", **fields))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=st.sampled_from([field.name for field in dataclasses.fields(RunRecord)]), value=JSON)
def test_whatever_stands_in_a_field_it_is_read_or_refused(field: str, value: object, tmp_path: Path) -> None:
    path = changed(tmp_path / "run.json", **{field: value})
    try:
        assert RunRecord.read(path).to_json()
    except RecordError as error:
        assert str(path) in str(error)
