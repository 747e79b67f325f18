"""Overlays and encoded pictures, on non-square arrays with exact expectations."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from adcam.report import figures
from adcam.report.figures import (
    can_draw,
    data_uri,
    draw_boxes,
    draw_legend,
    encode_jpeg,
    fit_side,
    heat_colors,
    overlay_heat,
    overlay_mask,
    picture_row,
    side_by_side,
)

PALETTE = [(i, 255 - i, (7 * i) % 256) for i in range(256)]


def random_img(hw: tuple[int, int] = (20, 34), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8)


def test_heat_colors_are_inferno() -> None:
    colors = heat_colors()
    assert colors.shape == (256, 3)
    assert colors[0].tolist() == [0, 0, 3]
    assert colors[255].tolist() == [252, 254, 164]
    # Perceptually even maps grow in lightness from end to end.
    lightness = colors.astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > -0.5).all()


def test_heat_of_zero_shows_the_photograph_and_one_the_map() -> None:
    gray = np.full((3, 5, 3), 90, np.uint8)
    assert (overlay_heat(gray, np.zeros((3, 5))) == gray).all()
    full = overlay_heat(gray, np.ones((3, 5)))
    assert np.abs(full - (0.25 * 90 + 0.75 * heat_colors()[255])).max() <= 0.5


def test_heat_follows_the_score_at_the_same_pixel() -> None:
    img = np.full((4, 7, 3), 128, np.uint8)
    score = np.zeros((4, 7), np.float32)
    score[1, 5] = 1.0
    changed = (overlay_heat(img, score) != img).any(axis=2)
    assert np.argwhere(changed).tolist() == [[1, 5]]


def test_heat_reads_nan_as_zero_and_clips() -> None:
    img = random_img((2, 3))
    score = np.array([[np.nan, -3, 0], [1, 9, 0.5]])
    legal = np.array([[0, 0, 0], [1, 1, 0.5]])
    assert (overlay_heat(img, score) == overlay_heat(img, legal)).all()


def test_mask_leaves_background_alone_and_colours_regions() -> None:
    img = random_img((40, 60))
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 20:50] = 7
    out = overlay_mask(img, mask, PALETTE, opacity=1.0)
    assert (out[mask == 0] == img[mask == 0]).all()
    assert (out[11:29, 21:49] == PALETTE[7]).all()
    # The contour is one pixel wide at this size and lies inside the region.
    assert (out[10, 20:50] == 255).all()
    assert (out[29, 20:50] == 255).all()
    assert (out[10:30, 20] == 255).all()
    assert (out[10:30, 49] == 255).all()


def test_mask_draws_a_line_between_touching_classes() -> None:
    img = np.zeros((6, 10, 3), np.uint8)
    mask = np.full((6, 10), 3, np.uint8)
    mask[:, 5:] = 4
    out = overlay_mask(img, mask, PALETTE, opacity=1.0)
    assert (out[:, 4:6] == 255).all()
    assert (out[:, :4] == PALETTE[3]).all()
    assert (out[:, 6:] == PALETTE[4]).all()


def test_ignored_pixels_are_hatched_white() -> None:
    img = np.zeros((12, 18, 3), np.uint8)
    mask = np.full((12, 18), 255, np.uint8)
    out = overlay_mask(img, mask, PALETTE)
    white = (out == 255).all(axis=2)
    rows, cols = np.indices(mask.shape)
    assert (white == ((rows + cols) % 6 < 2)).all()
    assert (out[~white] == 102).all()


def test_contour_grows_with_the_picture() -> None:
    img = np.zeros((300, 600, 3), np.uint8)
    mask = np.zeros((300, 600), np.uint8)
    mask[:, 300:] = 5
    out = overlay_mask(img, mask, PALETTE, opacity=1.0)
    assert np.flatnonzero((out[150] == 255).all(axis=1)).tolist() == [300, 301, 302]


@pytest.mark.parametrize("hw", [(1, 1), (1, 9), (9, 1)])
def test_tiny_pictures(hw: tuple[int, int]) -> None:
    img = random_img(hw)
    assert overlay_heat(img, np.ones(hw)).shape == img.shape
    assert overlay_mask(img, np.ones(hw, np.uint8), PALETTE).shape == img.shape
    assert data_uri(encode_jpeg(img)).startswith("data:image/jpeg;base64,")


def test_side_by_side_scales_to_the_first_height() -> None:
    red = np.full((10, 4, 3), (255, 0, 0), np.uint8)
    blue = np.full((20, 16, 3), (0, 0, 255), np.uint8)
    out = side_by_side([red, blue])
    assert out.shape == (10, 4 + 4 + 8, 3)
    assert (out[:, :4] == (255, 0, 0)).all()
    assert (out[:, 4:8] == 255).all()
    assert (out[:, 8:] == (0, 0, 255)).all()


def test_encoding_bounds_the_size_and_keeps_the_aspect() -> None:
    img = np.zeros((100, 400, 3), np.uint8)
    img[:, 200:] = (200, 40, 40)
    uri = data_uri(encode_jpeg(img, max_side=128))
    decoded = Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))
    assert decoded.size == (128, 32)
    pixels = np.asarray(decoded).astype(int)
    assert np.abs(pixels[:, :60]).max() < 12
    assert np.abs(pixels[:, 68:] - (200, 40, 40)).max() < 12
    small = Image.open(io.BytesIO(encode_jpeg(img[:5, :9], max_side=128)))
    assert small.size == (9, 5)


def test_fit_side() -> None:
    assert fit_side((375, 500), 256) == (192, 256)
    assert fit_side((500, 375), 256) == (256, 192)
    assert fit_side((3, 5000), 256) == (1, 256)
    assert fit_side((10, 20), 256) == (10, 20)


def test_picture_row_orders_its_columns() -> None:
    img = random_img()
    mask = np.zeros(img.shape[:2], np.uint8)
    row = picture_row(
        "x",
        img,
        score_maps={"CAM": np.zeros(img.shape[:2]), "AD-CAM": np.ones(img.shape[:2])},
        palette=PALETTE,
        labels=["cat"],
        gt=mask,
        masks={"mask": mask},
        values={"AD-CAM": 61.5},
    )
    assert [p.column for p in row.pictures] == ["image", "truth", "CAM", "AD-CAM", "mask"]
    assert [p.value for p in row.pictures] == [None, None, None, 61.5, None]
    assert (row.pictures[0].rgb == img).all()
    with pytest.raises(ValueError, match="'B'"):
        picture_row("x", img, score_maps={}, palette=PALETTE, values={"B": 1.0})


def test_mistakes_are_refused() -> None:
    img = random_img((4, 6))
    with pytest.raises(ValueError, match=r"score_map has shape \(6, 4\), the image \(4, 6\)"):
        overlay_heat(img, np.zeros((6, 4)))
    with pytest.raises(ValueError, match=r"mask has shape \(6, 4\)"):
        overlay_mask(img, np.zeros((6, 4), np.uint8), PALETTE)
    with pytest.raises(ValueError, match="256 colours, got 3"):
        overlay_mask(img, np.zeros((4, 6), np.uint8), PALETTE[:3])
    with pytest.raises(ValueError, match="opacity"):
        overlay_mask(img, np.zeros((4, 6), np.uint8), PALETTE, opacity=-0.1)
    with pytest.raises(ValueError, match="uint8"):
        overlay_heat(img.astype(float), np.zeros((4, 6)))
    with pytest.raises(ValueError, match="at least one"):
        side_by_side([])
    with pytest.raises(ValueError, match="max_side"):
        encode_jpeg(img, max_side=0)


def test_boxes_are_outlined_inside_themselves() -> None:
    gray = np.full((60, 90, 3), 90, np.uint8)
    out = draw_boxes(gray, np.array([[10, 20, 50, 41]]), (0, 200, 255))
    assert (gray == 90).all()  # a copy was drawn on
    rows, columns = np.nonzero((out != 90).any(axis=2))
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (10, 20, 49, 40)
    assert out[20, 30].tolist() == [0, 0, 0]  # the casing
    assert out[21, 30].tolist() == [0, 200, 255]
    assert (out[26:35, 16:44] == 90).all()


@pytest.mark.parametrize(
    "box", [[-5, -5, 500, 500], [3, 4, 3, 4], [89, 59, 90, 60], [88, 0, 90, 2]]
)
def test_boxes_at_the_edge_stay_in_the_picture(box: list[int]) -> None:
    out = draw_boxes(np.full((60, 90, 3), 90, np.uint8), np.array([box]), (1, 2, 3))
    assert out.shape == (60, 90, 3)
    assert (out == (1, 2, 3)).all(axis=2).any()


def test_no_boxes_leave_the_picture_and_others_are_refused() -> None:
    img = random_img()
    assert (draw_boxes(img, np.zeros((0, 4), int), (0, 0, 0)) == img).all()
    with pytest.raises(ValueError, match=r"boxes must be \(n, 4\), got \(4,\)"):
        draw_boxes(img, np.array([0, 0, 1, 1]), (0, 0, 0))


def test_a_legend_shows_every_colour_in_lines_of_the_width() -> None:
    colors = [(200, 10 * i, 30) for i in range(20)]
    entries = [(f"class {i}", color) for i, color in enumerate(colors)]
    heights = []
    for width in (168, 1316):
        strip = draw_legend(entries, width=width, rest=3)
        assert strip.dtype == np.uint8 and strip.shape[1:] == (width, 3)
        for color in colors:
            rows, columns = np.nonzero((strip == color).all(axis=2))
            assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (14, 14) and len(rows) == 14 * 14
        assert (strip[:, [0, -1]] == 255).all() and strip.min() < 40  # the text is dark
        heights.append(len(strip))
    assert heights[0] > heights[1] > 0
    assert (
        draw_legend(entries, width=168, rest=4) != draw_legend(entries, width=168, rest=3)
    ).any()
    assert draw_legend([], width=50).shape == (0, 50, 3)
    # A name that has no room is cut, so that it stays inside.
    for name in ("m" * 1000, "two\nlines " * 30):
        strip = draw_legend([(name, (200, 0, 30))], width=100)
        assert len(strip) == len(draw_legend(entries[:1], width=100))
        assert (strip[:, -6:] == 255).all()


def test_letters_that_the_font_lacks_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_draw("red fox") and not can_draw("red \u732b")
    # Without matplotlib there is Pillow's own font alone.
    monkeypatch.setattr(figures.importlib.util, "find_spec", lambda _: None)
    figures._load_font.cache_clear()
    try:
        assert can_draw("red fox") and not can_draw("K\u00e4fer")
        assert draw_legend([("red fox", (200, 0, 30))], width=168).shape == (32, 168, 3)
    finally:
        figures._load_font.cache_clear()
