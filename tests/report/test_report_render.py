"""The written files: self-contained, well-formed, escaped, the same every time."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from adcam.report import render
from adcam.report.figures import picture_row
from adcam.report.model import (
    Column,
    Confusion,
    Curves,
    Differences,
    Headline,
    KeyValues,
    PerClass,
    PictureGrid,
    Report,
    Scatter,
    Section,
    Series,
    Table,
    Text,
    TimeTable,
    Timing,
)
from adcam.report.render import write_report

VOID = {"meta", "img", "br", "hr", "input", "link"}
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'|`*&"
PALETTE = [(i, i, 255 - i) for i in range(256)]


class Page(HTMLParser):
    """Collects elements and checks that every one is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.stack or tag in VOID, tag
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack[-1] == tag, (tag, self.stack)
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        if self.stack:
            self.texts.append((self.stack[-1], data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]

    def text_of(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


def make_grid(
    *,
    name: str = "AD-CAM",
    img_id: str = "a/b c",
    num_rows: int = 1,
    hw: tuple[int, int] = (30, 40),
) -> PictureGrid:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(num_rows):
        img = rng.integers(0, 256, (*hw, 3), dtype=np.uint8)
        mask = np.zeros(hw, np.uint8)
        mask[5:20, 8:30] = 3
        rows.append(
            picture_row(
                f"{img_id}{i}",
                img,
                score_maps={"CAM": rng.random(hw), name: rng.random(hw)},
                palette=PALETTE,
                labels=["cat"],
                gt=mask,
                masks={"mask": mask},
                values={"CAM": 20.04, name: 71.5 if i == 0 else math.nan},
            )
        )
    return PictureGrid(rows, "drawn at random", [("cat", (3, 3, 252))])


def make_report(word: str = "AD-CAM") -> Report:
    """One of every block; ``word`` is put wherever text goes."""
    table = Table(
        [
            Column(word, hint=word),
            Column("mIoU", 1, "max", bar_max=100.0),
            Column("error", 2, "min"),
            Column("change"),
        ],
        [["CAM", 31.96, 0.5, -1.0], [word, 63.2, math.nan, 31.24], ["same", 63.24, 0.25, None]],
        caption=word,
        command=f"adcam demo {word}",
    )
    curves = Curves(
        [Series(word, [0, 0.5, 1], [1, 2, math.nan], (0.5, 2.0)), Series("b", [0, 1], [0, 1])],
        word,
        word,
        word,
        emphasis=word,
    )
    return Report(
        word,
        word,
        [word],
        [Headline(word, 63.2, word, word), Headline("n", math.nan)],
        [table, make_grid(name=word, img_id=word)],
        [
            Section(word, [Text([word, "second"], "caution"), curves]),
            Section(
                word,
                [
                    PerClass([word, "b"], {word: [1.0, math.nan], "m": [2.0, 3.0]}, caption=word),
                    Confusion([word, "b"], [[3, 1], [0, 0]], word),
                    Scatter([word], [1.0], [math.nan], word, word, word),
                    Differences([word, "b"], [1.0, math.nan], word, word),
                    Text([word]),
                    TimeTable([Timing(word, 1.5, 3), Timing("b", 0.5)], word),
                ],
            ),
        ],
        [KeyValues({word: word, "two": "lines\nhere", "nan": math.nan, "lr": 5e-5}, word)],
    )


def render_html(report: Report) -> str:
    """The page, without the files beside it."""
    return render._render_html(render._report_context(report)[0])


def test_files_are_written_and_the_json_matches(tmp_path: Path) -> None:
    report = make_report()
    path = write_report(report, tmp_path / "new" / "dir")
    assert path == tmp_path / "new" / "dir" / "report.html"
    written = {str(p.relative_to(path.parent)) for p in path.parent.rglob("*") if p.is_file()}
    pictures = {name for name in written if name.startswith("pictures/")}
    assert written - pictures == {"report.html", "report.md", "report.json"}
    assert len(pictures) == 5 + 5  # one grid row of five pictures, five diagrams
    assert json.loads((path.parent / "report.json").read_text("utf-8")) == report.to_dict()


def test_markdown_refers_to_exactly_the_pictures_written(tmp_path: Path) -> None:
    folder = write_report(make_report(), tmp_path).parent
    text = (folder / "report.md").read_text("utf-8")
    named = set(re.findall(r"\]\((pictures/[^)]+)\)", text))
    assert named == {f"pictures/{p.name}" for p in (folder / "pictures").iterdir()}


def test_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write_report(make_report(), tmp_path / "1").parent
    second = write_report(make_report(), tmp_path / "2").parent
    write_report(make_report(), tmp_path / "2")
    names = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(second) for p in second.rglob("*") if p.is_file())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.parametrize("word", ["AD-CAM", EVIL])
def test_page_is_well_formed_and_makes_no_request(word: str) -> None:
    html = render_html(make_report(word))
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert not re.search(r"https?://|//[a-z]+\.|url\(|@import", html)
    for tag in ("link", "iframe", "object", "embed", "base", "form"):
        assert all("action" not in attrs and "href" not in attrs for attrs in page.all(tag)), tag
    assert page.all("link") == []
    assert all((attrs["src"] or "").startswith("data:") for attrs in page.all("img"))
    assert all((attrs["href"] or "").startswith("#") for attrs in page.all("a"))


def test_hostile_text_stays_text() -> None:
    page = Page(render_html(make_report(EVIL)))
    assert len(page.all("script")) == 1
    for tag, attrs in page.elements:
        assert not any(name.startswith("on") for name in attrs), (tag, attrs)
    assert page.text_of("h1") == [EVIL]
    assert EVIL in [attrs.get("title") for attrs in page.all("th")]


def test_only_the_own_script_may_run() -> None:
    page = Page(render_html(make_report()))
    (script,) = page.text_of("script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [attrs["content"] for attrs in page.all("meta") if "http-equiv" in attrs]
    assert policy is not None
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_anchors_are_unique_and_lead_somewhere() -> None:
    page = Page(render_html(make_report("provenance")))
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {(attrs["href"] or "")[1:] for attrs in page.all("a")}
    assert targets <= set(ids)
    assert len(targets) == 3


def test_pictures_have_texts_and_sizes() -> None:
    page = Page(render_html(make_report()))
    pictures = [attrs for attrs in page.all("img") if attrs["src"] != "data:,"]
    assert [p["alt"] for p in pictures] == [
        "image of AD-CAM0",
        "truth of AD-CAM0",
        "CAM of AD-CAM0: 20.0 (IoU, %)",
        "AD-CAM of AD-CAM0: 71.5 (IoU, %)",
        "mask of AD-CAM0",
    ]
    assert {(p["width"], p["height"]) for p in pictures} == {("40", "30")}


def cells_of(html: str, *, best: bool) -> list[str]:
    """Texts of the table cells that hold a number, either the highlighted ones or the others."""
    cells = re.findall(r'<td class="([^"]*)">(?:<span[^>]*>.*?<span>)?([^<]+)<', html)
    found = [(style.split(), text) for style, text in cells]
    return [text for style, text in found if "num" in style and ("best" in style) == best]


def test_best_values_are_those_that_look_best() -> None:
    html = render_html(make_report())
    # 63.2 and 63.24 both read "63.2"; the smaller error wins; NaN never does.
    assert cells_of(html, best=True) == ["63.2", "63.2", "0.25"]
    assert cells_of(html, best=False)[:6] == ["32.0", "0.50", "−1.0", "–", "31.2", "–"]


def test_the_column_with_bars_is_the_one_that_stays_on_a_narrow_screen() -> None:
    columns = [Column("m"), Column("v", bar_max=50.0), Column("w")]
    html = render_html(Report("t", lead=[Table(columns, [["a", 1.0, 2.0], ["b", 3.0, 4.0]])]))
    assert re.findall(r'<t[hd][^>]*class="num main">(?:<span.*?<span>)?([^<]+)<', html) == [
        "v", "1.0", "3.0",
    ]  # fmt: skip
    assert re.search(r"@media screen and \(max-width: 700px\) \{.*\.main \{ right: 0;", html, re.S)


def test_a_single_value_is_not_the_best_of_anything() -> None:
    table = Table([Column("m"), Column("v", best="max")], [["a", 1.0], ["b", math.nan]])
    assert cells_of(render_html(Report("t", lead=[table])), best=True) == []


def test_bars_are_clipped_to_their_range() -> None:
    table = Table(
        [Column("m"), Column("v", bar_max=50.0)],
        [["a", 25.0], ["b", 80.0], ["c", -3.0], ["d", None]],
    )
    html = render_html(Report("t", lead=[table]))
    assert re.findall(r"--share: ([0-9.]+)%", html) == ["50.0", "100.0", "0.0"]


def test_nan_is_a_dash_everywhere() -> None:
    html = render_html(make_report())
    assert "–" in html
    visible = [text for tag, text in Page(html).texts if tag not in ("script", "style")]
    assert not [text for text in visible if re.search(r"\bnan\b", text) and text.strip() != "nan"]
    assert "None" not in "".join(visible)


def test_markdown_is_escaped(tmp_path: Path) -> None:
    write_report(make_report(EVIL), tmp_path)
    lines = (tmp_path / "report.md").read_text("utf-8").splitlines()
    prose = [line for line in lines if not line.startswith("    ")]
    assert not [line for line in prose if "<" in line]
    # An unescaped bar would add a cell.
    start = next(i for i, line in enumerate(lines) if line.startswith("| ---"))
    width = lines[start].count("|")
    for line in lines[start - 1 : start + 4]:
        assert len(re.findall(r"(?<!\\)\|", line)) == width


def test_markdown_table() -> None:
    table = Table([Column("m"), Column("v", best="max")], [["a", 1.0], ["b", 2.0]], "cap", "run me")
    text = markdown_of(Report("Title", lead=[table]))
    assert text == (
        "# Title\n\n| m | v |\n| --- | ---: |\n| a | 1.0 |\n| b | **2.0** |\n\ncap\n\n    run me\n"
    )


def test_times_are_a_table_with_their_sum() -> None:
    times = TimeTable([Timing("train", 90.0, 300), Timing("rest", 30.0)], "one core")
    text = markdown_of(Report("Title", lead=[times]))
    assert text == (
        "# Title\n\n| step | time | share, % | items | rate |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| train | 90.0 s | 75.0 | 300 | 0.30 s / image |\n| rest | 30.0 s | 25.0 |  |  |\n"
        "| **total** | **2 min 0 s** |  |  |  |\n\none core\n"
    )
    held = TimeTable([Timing("train", 1.0, peak_bytes=3 << 30), Timing("rest", 1.0)])
    assert "| train | 1.00 s | 50.0 | 3.0 GiB |" in markdown_of(Report("Title", lead=[held]))
    page = Page(render_html(Report("Title", lead=[times])))
    assert "2 min 0 s" in page.text_of("td") and "total" in page.text_of("th")


def test_what_is_no_block_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot show a str"):
        render_html(Report("t", lead=["text"]))  # type: ignore[list-item]


def test_markdown_quotes_cautions() -> None:
    text = markdown_of(Report("Title", lead=[Text(["one", "two"], "caution"), Text(["three"])]))
    assert text == "# Title\n\n> one\n>\n> two\n\nthree\n"


def markdown_of(report: Report) -> str:
    from adcam.report.render import _render_markdown, _report_context

    return _render_markdown(_report_context(report)[0])


def test_twenty_rows_of_eight_pictures_stay_below_six_mebibytes() -> None:
    # Smooth noise compresses about as badly as photographs do; white noise would not be fair.
    rng = np.random.default_rng(0)
    rows = []
    for i in range(20):
        coarse = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        img = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
        maps = {f"m{j}": rng.random((384, 512)).astype(np.float32) * 0.1 for j in range(7)}
        rows.append(picture_row(f"{i}", img, score_maps=maps, palette=PALETTE))
    html = render_html(Report("big", sections=[Section("s", [PictureGrid(rows)])]))
    assert len(html.encode()) < 6 * 2**20


def test_an_existing_report_is_replaced_and_nothing_temporary_stays(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("old")
    (tmp_path / "keep.txt").write_text("mine")
    write_report(Report("new"), tmp_path)
    assert "<h1>new</h1>" in (tmp_path / "report.html").read_text("utf-8")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "keep.txt", "pictures", "report.html", "report.json", "report.md",
    ]  # fmt: skip


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OSError):
        write_report(Report("t"), tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_empty_report_is_a_page() -> None:
    page = Page(render_html(Report("only a title")))
    assert page.text_of("h1") == ["only a title"]
    assert page.all("nav") == []
