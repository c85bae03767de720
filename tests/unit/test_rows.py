"""outputs/rows.py: what is written is read back exactly, in each format."""

import csv
import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gender_batch.outputs.rows import FORMATS, format_of, write_rows
from gender_batch.prediction import Prediction, Status, Value, columns

LABELS = ("female", "male")
COLUMNS = columns(LABELS)

paths = st.binary(min_size=1, max_size=60).filter(lambda name: 0 not in name).map(os.fsdecode)
texts = st.none() | st.text(max_size=60) | paths
sizes = st.none() | st.integers(1, 100_000)
probability = st.floats(0, 1).map(lambda value: round(value, 6))


@st.composite
def rows(draw: st.DrawFn) -> tuple[Value, ...]:
    if draw(st.booleans()):
        p = draw(probability)
        row = Prediction(
            draw(paths),
            Status.OK,
            draw(st.sampled_from([*LABELS, "uncertain"])),
            (p, round(1 - p, 6)),
            width=draw(sizes),
            height=draw(sizes),
        )
    else:
        status = draw(st.sampled_from([status for status in Status if status is not Status.OK]))
        row = Prediction(draw(paths), status, width=draw(sizes), height=draw(sizes), error=draw(texts))
    return row.values(len(LABELS))


NASTY = [
    Prediction(os.fsdecode(name), Status.CORRUPT, error=error).values(len(LABELS))
    for name, error in [
        (b"a,b.jpg", 'says "no"'),
        (b"new\nline\r\n.jpg", "two\nlines"),
        (b"\r", "\r"),
        (b'"', '"'),
        (b"=HYPERLINK(1)", "=1+1"),
        (b"caf\xe9.jpg", "\u2028 \x85 \x00"),
        (b" leading and trailing ", " "),
        ("\U0001f469 日本.jpg".encode(), "\ufeff"),
    ]
]


def written(suffix: str, content: list[tuple[Value, ...]]) -> bytes:
    file = io.BytesIO()
    with write_rows(file, suffix, COLUMNS) as writer:
        for values in content:
            writer.write(values)
    return file.getvalue()


@given(names=st.lists(st.text(st.sampled_from("a;=\t\"',-\n+"), max_size=8), max_size=4))
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_no_cell_for_a_spreadsheet_is_a_formula_whatever_separates_its_cells(separator: str, names: list[str]) -> None:
    file = io.BytesIO()
    with write_rows(file, ".csv", COLUMNS[:2], spreadsheet=True) as writer:
        for name in names:
            writer.write((name, None))
    _, *found = csv.reader(io.StringIO(file.getvalue().decode(), newline=""), delimiter=separator)
    assert len(found) == len(names)
    for cells, name in zip(found, names, strict=True):
        assert cells[0].lstrip("'").startswith(name.lstrip("'"))
        assert not any(cell.startswith(("=", "+", "-", "\t", "\n")) for cell in cells)


@given(content=st.lists(rows(), max_size=5))
@example(content=NASTY)
def test_csv_is_read_back_exactly(content: list[tuple[Value, ...]]) -> None:
    text = io.TextIOWrapper(
        io.BytesIO(written(".csv", content)), encoding="utf-8", errors="surrogateescape", newline=""
    )
    header, *found = list(csv.reader(text, strict=True))
    assert tuple(header) == COLUMNS
    assert found == [["" if value is None else str(value) for value in values] for values in content]
    for fields, values in zip(found, content, strict=True):
        assert os.fsencode(fields[0]) == os.fsencode(str(values[0]))
        if values[3] is not None:
            assert float(fields[3]) == values[3]


@given(content=st.lists(rows(), max_size=5))
@example(content=NASTY)
def test_json_is_read_back_exactly(content: list[tuple[Value, ...]]) -> None:
    data = written(".json", content)
    assert data.endswith(b"]\n")
    found = json.loads(data)
    assert found == [dict(zip(COLUMNS, values, strict=True)) for values in content]
    for entry, values in zip(found, content, strict=True):
        assert os.fsencode(entry["path"]) == os.fsencode(str(values[0]))
        assert [type(value) for value in entry.values()] == [type(value) for value in values]


@given(content=st.lists(rows(), max_size=5))
@example(content=NASTY)
def test_json_lines_are_read_back_exactly(content: list[tuple[Value, ...]]) -> None:
    data = written(".jsonl", content)
    lines = data.decode("ascii").splitlines()
    assert len(lines) == len(content)
    assert not content or data.endswith(b"\n")
    assert [json.loads(line) for line in lines] == [dict(zip(COLUMNS, values, strict=True)) for values in content]


def test_bytes_of_a_name_stand_in_the_csv_as_they_are() -> None:
    values = Prediction(os.fsdecode(b"caf\xe9.jpg"), Status.EMPTY).values(len(LABELS))
    assert written(".csv", [values]).split(b"\r\n")[1].startswith(b"caf\xe9.jpg,empty,")


def test_csv_follows_rfc_4180() -> None:
    values = Prediction('a"b,c', Status.CORRUPT, error="x").values(len(LABELS))
    header = b"path,status,label,confidence,p_female,p_male,faces,width,height,error,face_x,face_y,face_w,face_h,reason"
    assert written(".csv", [values]) == header + b'\r\n"a""b,c",corrupt,,,,,,,,x,,,,,\r\n'


def test_a_list_of_no_rows_is_valid() -> None:
    assert list(csv.reader(io.StringIO(written(".csv", []).decode(), newline=""))) == [list(COLUMNS)]
    assert json.loads(written(".json", [])) == []
    assert written(".jsonl", []) == b""


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_file_stays_open_for_whoever_publishes_it(suffix: str) -> None:
    file = io.BytesIO()
    with write_rows(file, suffix, COLUMNS):
        pass
    assert not file.closed
    file.write(b"")


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_row_of_another_length_is_an_error(suffix: str) -> None:
    with pytest.raises(ValueError, match="shorter"), write_rows(io.BytesIO(), suffix, COLUMNS) as writer:
        writer.write(("a.jpg", "ok"))


def test_an_error_in_the_block_is_not_completed_to_a_valid_array() -> None:
    file = io.BytesIO()
    with pytest.raises(RuntimeError), write_rows(file, ".json", COLUMNS) as writer:
        writer.write(NASTY[0])
        raise RuntimeError
    with pytest.raises(json.JSONDecodeError):
        json.loads(file.getvalue())


@pytest.mark.parametrize(
    ("name", "suffix"), [("a.csv", ".csv"), ("a.JSON", ".json"), ("a.b.jsonl", ".jsonl"), ("d.csv/a.json", ".json")]
)
def test_the_suffix_says_the_format(name: str, suffix: str) -> None:
    assert format_of(Path(name)) == suffix


@pytest.mark.parametrize("name", ["a", "a.xlsx", "a.csv.gz", ".csv", "csv", "a."])
def test_an_unknown_suffix_is_refused_and_the_choices_named(name: str) -> None:
    with pytest.raises(ValueError, match="suffix") as caught:
        format_of(Path(name))
    assert name in str(caught.value)
    for suffix in (".csv", ".json", ".jsonl"):
        assert suffix in str(caught.value)
