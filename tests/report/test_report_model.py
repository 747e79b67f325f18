"""A report that exists can be rendered: its parts check themselves."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from adcam.report.model import (
    Column,
    Confusion,
    Curves,
    Differences,
    Headline,
    KeyValues,
    PerClass,
    Picture,
    PictureGrid,
    PictureRow,
    Report,
    Scatter,
    Section,
    Series,
    Table,
    Text,
    TimeTable,
    Timing,
)

RGB = np.zeros((4, 6, 3), np.uint8)


def test_to_dict_is_plain_json_and_holds_no_pixels() -> None:
    grid = PictureGrid([PictureRow("a", [Picture(RGB, "image", np.float32(1.5))], ["cat"])])
    table = Table([Column("m"), Column("v")], [["x", math.nan], ["y", np.int64(3)]])
    report = Report(
        "t",
        lead=[table, grid],
        sections=[Section("s", [Confusion(["a"], np.array([[2]]).tolist())])],
        provenance=[KeyValues({"seed": 0, "lr": math.inf, "crf": None})],
    )
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["lead"][0]["kind"] == "table"
    assert data["lead"][0]["rows"] == [["x", None], ["y", 3]]
    assert data["lead"][1]["rows"] == [
        {
            "img_id": "a",
            "pictures": [{"column": "image", "value": 1.5, "hw": [4, 6]}],
            "labels": ["cat"],
        }
    ]
    assert data["sections"][0]["blocks"][0]["counts"] == [[2]]
    assert data["provenance"][0]["entries"] == {"seed": 0, "lr": None, "crf": None}


def test_to_dict_refuses_what_json_cannot_hold() -> None:
    report = Report("t", provenance=[KeyValues({"x": {1, 2}})])  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="cannot hold a set"):
        report.to_dict()


def test_confusion_shares_and_largest() -> None:
    confusion = Confusion(["a", "b", "c"], [[6, 2, 0], [9, 1, 0], [0, 0, 0]])
    shares = confusion.shares()
    assert shares[:2] == [[0.75, 0.25, 0.0], [0.9, 0.1, 0.0]]
    assert all(math.isnan(share) for share in shares[2])
    assert confusion.largest(5) == [("b", "a", 0.9), ("a", "b", 0.25)]
    assert confusion.largest(1) == [("b", "a", 0.9)]


def test_times_sum_up() -> None:
    assert TimeTable([Timing("a", 1.5), Timing("b", 2.0, 4)]).total == 3.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Text(["x"], tone="loud"), r"tone must be one of .*'caution'.*got 'loud'"),
        (lambda: Column("c", best="high"), "best must be one of"),
        (lambda: Column("c", digits=-1), "digits of column 'c'"),
        (lambda: Column("c", bar_max=0.0), "bar_max of column 'c'"),
        (lambda: Table([Column("c")], [["a"], ["b", 1]], "cap"), "row 1 of table 'cap' has 2"),
        (lambda: Series("s", [1, 2], [1]), "'s' has 2 x values but 1 y values"),
        (lambda: Curves([], "x", "y"), "no series"),
        (lambda: Curves([Series("s", [], [])] * 2, "x", "y"), "given twice"),
        (lambda: Curves([Series("s", [], [])], "x", "y", emphasis="q"), "emphasis must be one of"),
        (lambda: Curves([Series("s", [], [])], "x", "y", y_range=(1, 1)), "y_range"),
        (lambda: PerClass(["a", "b"], {"m": [1.0]}), "1 values for 2 classes"),
        (lambda: PerClass(["a"], {}), "no method"),
        (lambda: Confusion(["a", "b"], [[1, 2]]), "2×2"),
        (lambda: Confusion(["a"], [[-1]]), "negative"),
        (lambda: Picture(RGB.astype(np.float32), "p"), "uint8"),
        (lambda: Picture(RGB[..., 0], "p"), "uint8"),
        (lambda: Picture(RGB[:0], "p"), "empty"),
        (lambda: PictureGrid([], max_side=0), "max_side"),
        (lambda: Timing("s", -1.0), "seconds of step 's'"),
        (lambda: Timing("s", math.nan), "seconds of step 's'"),
        (lambda: Timing("s", 1.0, 0), "num_items"),
        (lambda: Report("t", headlines=[Headline("h", 1)] * 5), "at most 4"),
    ],
)
def test_mistakes_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_rows_of_a_grid_have_the_same_columns() -> None:
    first = PictureRow("a", [Picture(RGB, "image"), Picture(RGB, "truth")])
    second = PictureRow("b", [Picture(RGB, "image")])
    assert PictureGrid([first]).columns == ["image", "truth"]
    with pytest.raises(ValueError, match="row 'b' has columns"):
        PictureGrid([first, second])


def test_scatter_and_differences_refuse_lists_of_other_lengths() -> None:
    with pytest.raises(ValueError, match="1 names, 2 x and 1 y"):
        Scatter(["a"], [1.0, 2.0], [1.0], "x", "y")
    with pytest.raises(ValueError, match="2 names for 1 values"):
        Differences(["a", "b"], [1.0], "points")
