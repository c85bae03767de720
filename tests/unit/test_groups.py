"""evaluation/groups.py: figures of people who have something in common."""

from gender_batch.evaluation.groups import by_group


def test_values_are_sorted_with_the_numbers_in_them_by_size() -> None:
    values = ["10-19", "9" * 5_000, "3-9", "older", "3-9 months", "9" * 4_999 + "8"]
    groups = by_group([{"age": value} for value in values], ["any"] * 6, [True] * 6)
    assert [group.value for group in groups if group.column == "age"] == [
        "3-9", "3-9 months", "10-19", "9" * 4_999 + "8", "9" * 5_000, "older",
    ]  # fmt: skip
