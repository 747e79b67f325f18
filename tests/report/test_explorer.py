"""The explorer's files, and the page that shows them: in a browser, against what Python says."""

from __future__ import annotations

import base64
import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Watched, open_browser, open_page
from hypothesis import given
from hypothesis import strategies as st

from adcam.data.dataset import build_class_set
from adcam.labeling.mask_maker import resize_maps
from adcam.masks.background import compute_mask, find_threshold
from adcam.metrics.miou import MeanIoU
from adcam.report.explorer import (
    ExploredImage,
    ExploredMethod,
    ExplorerWriter,
    PatchAttention,
    find_confusions,
    read_index,
)
from adcam.report.figures import DARK, display_palette
from adcam.report.model import (
    Column,
    Confusion,
    Curves,
    Explorer,
    Report,
    Section,
    Series,
    Table,
)
from adcam.report.render import write_report
from adcam.structures import IGNORE_INDEX, ClassMaps

CLASSES = build_class_set("four", ["cat", "dog", "horse", "sheep"])
METHODS = [
    ExploredMethod("CAM", 41.0, "constant:0.3"),
    ExploredMethod("AD-CAM", 62.0, "constant:0.45"),
    ExploredMethod("AD-CAM + CRF", 64.0, "constant:0.5", crf=True),
]
HOSTILE = "</script><img src=x onerror=alert(1)>"
NUM_IMAGES = 9


def upscale_maps(maps: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Enlarge 8-bit maps linearly in whole numbers: what the page's codec.js is to compute.

    Pixel centres are at halves, as everywhere in adcam; the weights are whole 256ths. From uint8
    (K, h', w') to uint8 (K, h, w), at least as large.
    """
    top, below, down = _neighbours(maps.shape[1], hw[0])
    left, beside, across = _neighbours(maps.shape[2], hw[1])
    wide = maps.astype(np.int64)
    rows = wide[:, :, left] * (256 - across) + wide[:, :, beside] * across  # (K, h', w)
    down = down[:, None]
    mixed = rows[:, top] * (256 - down) + rows[:, below] * down  # (K, h, w)
    return ((mixed + 32768) >> 16).astype(np.uint8)


def _neighbours(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two samples that each new one lies between, and the weight of the second in 256ths."""
    place = np.maximum((2 * np.arange(new_size) + 1) * size - new_size, 0)  # in 1 / (2 new_size)
    first = np.minimum(place // (2 * new_size), size - 1)
    weight = ((place - first * 2 * new_size) * 256 + new_size) // (2 * new_size)
    return first, np.minimum(first + 1, size - 1), weight


def smooth(rng: np.random.Generator, hw: tuple[int, int]) -> np.ndarray:
    """A smooth map with a hill, uint8, from 0 to 255."""
    rows, cols = np.mgrid[: hw[0], : hw[1]]
    y, x = rng.uniform(0.3, 0.7, 2) * hw
    hill = np.exp(-(((rows - y) / hw[0]) ** 2 + ((cols - x) / hw[1]) ** 2) / 0.04)
    noisy = hill + 0.1 * resize_maps(rng.random((1, 6, 8), np.float32), hw)[0]
    return np.rint(255 * (noisy - noisy.min()) / np.ptp(noisy)).astype(np.uint8)


def make_image(number: int) -> ExploredImage:
    rng = np.random.default_rng(number)
    hw, map_hw = ((150, 200), (75, 100)) if number % 2 else ((200, 140), (57, 40))
    classes = [1 + number % 4] if number % 3 else [1, 3]
    maps = {name: np.stack([smooth(rng, map_hw) for _ in classes]) for name in ("CAM", "AD-CAM")}
    truth = np.zeros(hw, np.uint8)
    truth[40:120, 30:100] = classes[-1]
    truth[36:40, 30:100] = IGNORE_INDEX
    masks = {}
    for method in METHODS:
        masks[method.name] = np.zeros(hw, np.uint8)
        masks[method.name][50:110, 40:130] = 1 + number % 4
    patches = rng.integers(0, 256, (2, 30, 30), dtype=np.uint8)
    return ExploredImage(
        HOSTILE if number == 5 else f"folder/image {number}",
        rng.integers(0, 256, (*hw, 3), dtype=np.uint8),
        classes,
        truth,
        maps,
        masks,
        {method.name: 10.0 * number + i for i, method in enumerate(METHODS)},
        0.1 * number,
        PatchAttention((5, 6), *patches) if number == 2 else None,
    )


@pytest.fixture(scope="module")
def images() -> list[ExploredImage]:
    return [make_image(number) for number in range(NUM_IMAGES)]


@pytest.fixture(scope="module")
def report_path(tmp_path_factory: pytest.TempPathFactory, images: list[ExploredImage]) -> Path:
    folder = tmp_path_factory.mktemp("stage") / "explorer"
    writer = ExplorerWriter(folder, METHODS, CLASSES)
    for image in images:
        writer.add(image)
    writer.finish()
    index = read_index(folder)
    assert index is not None
    thresholds = [round(0.1 * i, 1) for i in range(11)]
    lines = [Series("CAM", thresholds, [10.0 * i for i in range(11)], (0.3, 30.0))]
    lines.append(Series("AD-CAM", thresholds, [math.nan, *[50.0 - i for i in range(10)]]))
    names = ["background", "cat", "dog", "horse", "sheep"]
    counts = [[9 if i == j else (i + j) % 3 for j in range(5)] for i in range(5)]
    blocks = [Curves(lines, "threshold", "mIoU, %"), Confusion(names, counts)]
    explorer = Explorer(folder, index, "Nine images.")
    sections = [Section("Explore", [explorer]), Section("Diagrams", blocks)]
    columns = [Column(name) for name in ("method", "scales", "CRF", "threshold", "mIoU train")]
    columns += [Column("mIoU val", bar_max=100.0), Column("best on split"), Column("loss")]
    table = Table(columns, [["a method with a name", "448/560/672 flip", "toco", 0.5, *4 * [50.0]]])
    report = Report("A report", lead=[table], sections=sections)
    return write_report(report, tmp_path_factory.mktemp("report #1"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as found:
        yield found


@pytest.fixture
def watched(browser: Any, report_path: Path) -> Iterator[Watched]:
    found = open_page(browser, report_path, viewport={"width": 1400, "height": 1000})
    found.page.wait_for_selector(".panel canvas")
    yield found
    found.check_quiet()
    found.page.close()


def part(watched: Watched, name: str) -> Any:
    return watched.page.locator(f'#explorer [data-part="{name}"]')


def move(watched: Watched, name: str, value: float) -> None:
    """Put a slider or a list on a value, as a user does."""
    part(watched, name).evaluate(
        "(control, value) => { control.value = value;"
        " control.dispatchEvent(new Event('input', {bubbles: true})); }",
        str(value),
    )


def choose_image(watched: Watched, number: int) -> None:
    watched.page.locator(f"#image-{number}").click()
    settle(watched)
    assert watched.page.evaluate("() => adcam.explorer.state().current") == number


def settle(watched: Watched) -> None:
    """Wait until the chosen image is there."""
    part(watched, "detail").and_(watched.page.locator('[aria-busy="false"]')).wait_for()


def read_panels(watched: Watched) -> dict[str, dict[str, Any]]:
    """What every panel says, with its mask, by name."""
    panels = watched.page.evaluate(
        "() => adcam.explorer.state().panels.map(p => ({name: p.name, score: p.score.textContent,"
        " live: p.score.dataset.live, threshold: p.frame.dataset.threshold,"
        " mask: p.mask && btoa(String.fromCharCode(...p.mask))}))"
    )
    for panel in panels:
        if panel["mask"] is not None:
            panel["mask"] = np.frombuffer(base64.b64decode(panel["mask"]), np.uint8)
    return {panel["name"]: panel for panel in panels}


def ids_in_list(watched: Watched) -> list[str]:
    return watched.page.locator("#explorer .option .id").all_text_contents()


def test_the_index_says_what_lists_need(report_path: Path, images: list[ExploredImage]) -> None:
    plain = json.loads(report_path.with_name("report.json").read_text("utf-8"))
    (block,) = plain["sections"][0]["blocks"]
    assert block["kind"] == "explorer" and "heat" not in block
    assert [entry["id"] for entry in block["images"]] == [image.img_id for image in images]
    first = block["images"][1]
    assert first["iou"] == [10.0, 11.0, 12.0] and first["confidence"] == 0.1
    labelled = 150 * 200 - 4 * 70
    assert first["size"] == round(100 * 80 * 70 / labelled, 2)
    assert first["confusions"] == [[2, 0, 80 * 70 - 60 * 60], [0, 2, 30 * 60]]
    assert "9 images" in report_path.with_name("report.md").read_text("utf-8")


def test_confusions_leave_out_what_is_not_scored() -> None:
    truth = np.array([[0, 1, 1, 255, 2, 2]], np.uint8)
    mask = np.array([[0, 2, 2, 1, 255, 1]], np.uint8)
    assert find_confusions(truth, mask) == [[1, 2, 2], [2, 1, 1]]
    assert find_confusions(None, mask) == find_confusions(truth, None) == []


def test_an_image_of_another_size_is_refused(tmp_path: Path) -> None:
    image = make_image(1)
    image = ExploredImage(image.img_id, image.rgb[:-1], image.class_values, image.truth)
    with pytest.raises(ValueError, match="must be of its size"):
        ExplorerWriter(tmp_path, METHODS, CLASSES).add(image)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 30), st.integers(0, 30))
def test_maps_are_enlarged_as_everywhere(height: int, width: int, down: int, across: int) -> None:
    maps = np.random.default_rng(height * 13 + width).integers(0, 256, (2, height, width))
    hw = (height + down, width + across)
    large = upscale_maps(maps.astype(np.uint8), hw)
    assert large.shape == (2, *hw) and large.dtype == np.uint8
    exact = resize_maps(maps.astype(np.float32), hw)
    # Weights of whole 256ths in two directions, then rounding to a whole number.
    assert np.abs(large - exact).max() <= 0.5 + 255 * 2 / 512 + 1e-3
    if hw == (height, width):
        assert np.array_equal(large, maps)


def contrast(first: tuple[int, ...], second: tuple[int, ...]) -> float:
    """The contrast of WCAG 2.1."""
    light = []
    for color in (first, second):
        share = np.array(color) / 255
        linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
        light.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(light) + 0.05) / (min(light) + 0.05)


@pytest.mark.parametrize("num", [1, 6, 20, 80])
def test_colours_are_seen_on_white_and_on_black(num: int) -> None:
    class_set = build_class_set("many", [f"class {i}" for i in range(num)])
    palette = display_palette(class_set)
    assert len(palette) == 256
    colors = [palette[value] for value in class_set.mask_values]
    assert min(contrast(color, (255, 255, 255)) for color in colors) >= 3
    assert min(contrast(color, DARK) for color in colors) >= 3
    few = np.array(colors[:20], float)
    apart = np.linalg.norm(few[:, None] - few[None], axis=-1) + 1e3 * np.eye(len(few))
    assert num == 1 or apart.min() > 20


@pytest.mark.parametrize("rule", ["constant", "steepest"])
def test_sliders_give_the_masks_and_scores_of_python(
    watched: Watched, images: list[ExploredImage], rule: str
) -> None:
    moved = set()
    for number in (0, 1, 4):
        image = images[number]
        assert image.truth is not None
        choose_image(watched, number)
        for value in (0.0, 0.2, 0.44, 0.58, 0.9, 1.0):
            move(watched, "rule", rule)  # type: ignore[arg-type]
            move(watched, "threshold", value)
            panels = read_panels(watched)
            for name, maps in image.maps.items():
                scores = upscale_maps(maps, image.truth.shape).astype(np.float32) / 255
                found = ClassMaps(tuple(v - 1 for v in image.class_values), scores)
                mask = compute_mask(
                    found, mask_values=CLASSES.mask_values, rule=rule, threshold=value
                ).mask
                level = find_threshold(scores, rule=rule, threshold=value)
                assert float(panels[name]["threshold"]) == level
                assert np.array_equal(np.reshape(panels[name]["mask"], mask.shape), mask)
                metric = MeanIoU(CLASSES.num_classes)
                metric.update(mask, image.truth)
                assert float(panels[name]["live"]) == pytest.approx(metric.compute().miou, abs=1e-9)
                assert panels[name]["score"] == f"{metric.compute().miou:.1f}"
                moved.add(level)
            # A CRF is not run in the page.
            assert panels["AD-CAM + CRF"]["live"] == ""
    assert len(moved) > 4


def test_stored_masks_keep_the_scores_of_the_table(
    watched: Watched, images: list[ExploredImage]
) -> None:
    choose_image(watched, 3)
    panels = read_panels(watched)
    assert [panels[m.name]["score"] for m in METHODS] == ["30.0", "31.0", "32.0"]
    for method in METHODS:
        mask = images[3].masks[method.name]
        assert np.array_equal(np.reshape(panels[method.name]["mask"], mask.shape), mask)
    assert part(watched, "command").text_content() == ""
    move(watched, "threshold", 0.3)
    assert part(watched, "command").text_content() == "--bg constant:0.3"
    move(watched, "rule", "stored")  # type: ignore[arg-type]
    assert read_panels(watched)["CAM"]["score"] == "30.0"


def test_opacity_and_view_change_what_is_drawn(watched: Watched) -> None:
    draw = "() => adcam.explorer.state().panels[3].canvas.toDataURL()"
    drawn = {watched.page.evaluate(draw)}
    for name, value in (("opacity", 20), ("view", "map"), ("view", "both"), ("opacity", 90)):
        move(watched, name, value)  # type: ignore[arg-type]
        drawn.add(watched.page.evaluate(draw))
    assert len(drawn) == 5


def test_filters_and_sorting(watched: Watched, images: list[ExploredImage]) -> None:
    by_iou = [image.img_id for image in images]
    assert ids_in_list(watched) == by_iou[::-1]
    part(watched, "order").click()
    assert ids_in_list(watched) == by_iou
    part(watched, "order").click()
    part(watched, "class").select_option(label="horse")
    horses = [image.img_id for image in images if 3 in image.class_values]
    assert ids_in_list(watched) == horses[::-1] and 0 < len(horses) < NUM_IMAGES
    assert part(watched, "count").text_content() == f"{len(horses)} of 9 images"
    part(watched, "class").select_option("")
    part(watched, "search").fill("IMAGE 7")
    assert ids_in_list(watched) == ["folder/image 7"]
    part(watched, "search").fill("no such image")
    assert ids_in_list(watched) == [] and part(watched, "detail").is_hidden()
    part(watched, "search").fill("")
    part(watched, "sort").select_option("size")
    sizes = watched.page.locator(".option .value").all_text_contents()
    numbers = [float(text.split(" ")[0]) for text in sizes]
    assert numbers == sorted(numbers, reverse=True) and len(set(numbers)) > 1


def test_the_table_can_be_taken_along(watched: Watched) -> None:
    part(watched, "class").select_option(label="horse")
    with watched.page.expect_download() as download:
        part(watched, "csv").click()
    text = Path(download.value.path()).read_text("utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["id"] for row in rows] == ids_in_list(watched)
    assert rows[-1]["iou_AD-CAM"] == "1" and rows[-1]["classes"] == "cat;horse"


def test_everything_can_be_reached_by_keyboard(watched: Watched) -> None:
    page = watched.page
    part(watched, "sheet").focus()
    page.keyboard.press("End")
    assert page.evaluate("() => adcam.explorer.state().current") == 0
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("() => adcam.explorer.state().current") == NUM_IMAGES - 2
    active = part(watched, "sheet").get_attribute("aria-activedescendant")
    assert page.locator(f"#{active}").get_attribute("aria-selected") == "true"
    settle(watched)
    part(watched, "threshold").focus()
    before = page.evaluate("() => document.activeElement.value")
    page.keyboard.press("ArrowRight")
    assert float(page.evaluate("() => document.activeElement.value")) > float(before)
    page.locator("#explorer .frame").last.focus()
    page.keyboard.press("ArrowLeft")
    assert "AD-CAM" in (part(watched, "readout").text_content() or "")
    # Every control is in the order of the tab key, and has a name for screen readers.
    names = page.evaluate(
        "() => [...document.querySelectorAll('#explorer :is(select, input, button)')]"
        ".filter(e => !e.hidden)"
        ".map(e => e.labels?.[0]?.textContent || e.ariaLabel || e.textContent)"
    )
    assert all(names) and len(names) >= 11


def test_a_pixel_names_class_and_score(watched: Watched, images: list[ExploredImage]) -> None:
    choose_image(watched, 4)
    box = watched.page.locator("#explorer .frame").first.bounding_box()
    height, width = images[4].rgb.shape[:2]
    x, y = 60, 70
    watched.page.mouse.move(
        box["x"] + box["width"] * (x + 0.5) / width, box["y"] + box["height"] * (y + 0.5) / height
    )
    texts = watched.page.locator(".panel .at").all_text_contents()
    score = upscale_maps(images[4].maps["CAM"], (height, width))[0, y, x] / 255
    assert texts[1] == "cat" and texts[2] == f"cat (cat {score:.2f})", texts


def test_curves_read_out_their_values(watched: Watched) -> None:
    figure = watched.page.locator("figure[data-sense]")
    box = figure.locator(".sense").bounding_box()
    figure.scroll_into_view_if_needed()
    box = figure.locator(".sense").bounding_box()
    watched.page.mouse.move(box["x"] + 0.41 * box["width"], box["y"] + 9)
    reading = figure.locator(".reading")
    assert reading.text_content() == "threshold 0.4: AD-CAM 47, CAM 40"
    watched.page.mouse.move(0, 0)
    assert reading.text_content() == ""
    figure.locator("svg").focus()
    watched.page.keyboard.press("Home")
    assert reading.text_content() == "threshold 0: CAM 0"
    watched.page.keyboard.press("ArrowRight")
    assert reading.text_content() == "threshold 0.1: AD-CAM 50, CAM 10"


def test_a_cell_of_the_confusion_matrix_shows_its_images(
    watched: Watched, images: list[ExploredImage]
) -> None:
    def confused(image: ExploredImage, pair: tuple[int, int]) -> bool:
        found = find_confusions(image.truth, image.masks["AD-CAM + CRF"])
        return any((truth, predicted) == pair for truth, predicted, _ in found)

    cell = watched.page.locator('.cell[data-truth="background"][data-predicted="cat"]')
    cell.focus()
    watched.page.keyboard.press("Enter")
    expected = {image.img_id for image in images if confused(image, (0, 1))}
    assert set(ids_in_list(watched)) == expected and 0 < len(expected) < NUM_IMAGES
    chip = part(watched, "confusion")
    assert chip.text_content() == "background taken for cat ✕"
    chip.click()
    assert len(ids_in_list(watched)) == NUM_IMAGES and chip.is_hidden()
    # From cell to cell by arrow keys, and to the images of a class from the diagonal.
    cell.focus()
    watched.page.keyboard.press("ArrowDown")
    watched.page.keyboard.press(" ")
    assert chip.text_content() == "cat ✕"
    assert set(ids_in_list(watched)) == {i.img_id for i in images if 1 in i.class_values}


def test_a_patch_shows_what_it_attends_to(watched: Watched, images: list[ExploredImage]) -> None:
    assert part(watched, "attention").is_hidden()
    part(watched, "attentive").check()
    assert ids_in_list(watched) == ["folder/image 2"]
    patches = images[2].attention
    assert patches is not None
    part(watched, "attention").wait_for(state="visible")
    frame = part(watched, "attention-panels").locator(".frame").first
    box = frame.bounding_box()
    frame.click(position={"x": box["width"] * 4.5 / 6, "y": box["height"] * 1.5 / 5})

    def rows() -> dict[str, list[int]]:
        panels = watched.page.evaluate("() => adcam.attention.state().panels")
        return {panel["name"]: panel["row"] for panel in panels}

    assert rows() == {
        "attention": patches.attention[6 + 4].tolist(),
        "affinity by common neighbours": patches.affinity[6 + 4].tolist(),
    }
    frame.focus()
    watched.page.keyboard.press("ArrowDown")
    assert rows()["attention"] == patches.attention[12 + 4].tolist()
    assert "row 3, column 5" in (part(watched, "readout").text_content() or "")


def test_hostile_names_stay_text(watched: Watched) -> None:
    choose_image(watched, 5)
    assert part(watched, "title").text_content() == HOSTILE
    assert HOSTILE in ids_in_list(watched)


def test_a_page_without_its_files_says_so(browser: Any, report_path: Path, tmp_path: Path) -> None:
    alone = tmp_path / "report.html"
    alone.write_bytes(report_path.read_bytes())
    found = open_page(browser, alone)
    message = part(found, "missing")
    message.wait_for(state="visible")
    assert "keep the folder" in (message.text_content() or "")
    found.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it(browser: Any, report_path: Path, scheme: str) -> None:
    size = {"width": 400, "height": 800}
    found = open_page(browser, report_path, viewport=size, color_scheme=scheme)
    found.page.wait_for_selector(".panel canvas")
    assert found.page.evaluate("() => document.documentElement.scrollWidth") <= 400
    for name in ("class", "threshold", "rule", "csv"):
        box = part(found, name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 400, name
    # A table may be wider, but its names and the column that counts are on the screen.
    for cell in ("tbody th", "tbody td.main"):
        box = found.page.locator(cell).first.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 400, cell
    found.check_quiet()
    found.page.close()


def test_boxes_are_drawn_over_maps(browser: Any, tmp_path: Path) -> None:
    methods, classes = [ExploredMethod("CAM", 50.0, "constant:0.3")], build_class_set("x", ["cat"])
    writer = ExplorerWriter(tmp_path / "stage", methods, classes)
    rgb, maps = np.zeros((100, 200, 3), np.uint8), {"CAM": np.zeros((1, 10, 20), np.uint8)}
    boxes: dict[str, Any] = {"true_boxes": [(0.5, 0.2, 0.9, 0.8)]}
    writer.add(
        ExploredImage("a", rgb, [1], maps=maps, **boxes, found_boxes={"CAM": (0, 0, 0.25, 1)})
    )
    writer.finish()
    index = read_index(tmp_path / "stage")
    assert index is not None
    report = Report("Boxes", sections=[Section("E", [Explorer(tmp_path / "stage", index)])])
    found = open_page(browser, write_report(report, tmp_path / "report"))
    found.page.wait_for_selector(".panel canvas")
    assert part(found, "view").input_value() == "map"
    pixel = (
        "([panel, x, y]) => [...adcam.explorer.state().panels[panel].canvas"
        ".getContext('2d').getImageData(x, y, 1, 1).data.slice(0, 3)]"
    )
    for panel in (0, 1):  # the photograph has the true box alone
        assert min(found.page.evaluate(pixel, [panel, 140, 20])) > 150
        red, green, blue = found.page.evaluate(pixel, [panel, 50, 50])
        assert (red < 50 and min(green, blue) > 120) == (panel == 1)
    found.check_quiet()
    found.page.close()


def test_a_thousand_images_are_loaded_as_they_are_looked_at(browser: Any, tmp_path: Path) -> None:
    methods, classes = [ExploredMethod("CAM", 50.0, "constant:0.3")], build_class_set("x", ["cat"])
    writer = ExplorerWriter(tmp_path / "stage", methods, classes)
    mask = np.zeros((12, 16), np.uint8)
    for number in range(1000):
        rgb = np.full((12, 16, 3), number % 256, np.uint8)
        maps, mious = {"CAM": np.zeros((1, 3, 4), np.uint8)}, {"CAM": number / 10}
        writer.add(ExploredImage(str(number), rgb, [1], mask, maps, {"CAM": mask}, mious))
    writer.finish()
    index = read_index(tmp_path / "stage")
    assert index is not None
    report = Report("Many", sections=[Section("E", [Explorer(tmp_path / "stage", index)])])
    found = open_page(browser, write_report(report, tmp_path / "report"))
    found.page.wait_for_selector(".panel canvas")
    assert len(ids_in_list(found)) == 1000
    assert len(found.requests) < 300
    scripts = [url for url in found.requests if url.endswith(".js")]
    assert [url.rpartition("/")[2] for url in scripts] == ["999.js"]
    spent = found.page.evaluate(
        "() => { const search = document.querySelector('[data-part=search]');"
        " const start = performance.now(); search.value = '99';"
        " search.dispatchEvent(new Event('input')); return performance.now() - start; }"
    )
    assert spent < 1000  # milliseconds, on a busy machine; a tenth of it on a quiet one
    assert ids_in_list(found) == [str(n) for n in range(999, -1, -1) if "99" in str(n)]
    found.check_quiet()
    found.page.close()
