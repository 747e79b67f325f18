"""Every kind of image file comes out as upright RGB, or as an error that says why."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from adcam.data.images import ImageError, read_image, read_image_hw, turn_as_stored

PngWriter: TypeAlias = Callable[[tuple[int, int], int, int, bytes], bytes]
HW = (6, 9)


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*HW, 3), dtype=np.uint8)


def check(img: np.ndarray, path: Path) -> np.ndarray:
    """The promises that hold for every image read."""
    assert img.dtype == np.uint8
    assert img.ndim == 3
    assert img.shape[2] == 3
    assert img.flags.c_contiguous
    assert img.flags.writeable
    assert read_image_hw(path) == img.shape[:2]
    return img


def exif_with(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


LOSSLESS: dict[str, dict[str, Any]] = {
    ".webp": {"lossless": True},
    ".jp2": {"irreversible": False},
    ".j2k": {"irreversible": False},
}


@pytest.mark.parametrize(
    "suffix",
    [".png", ".bmp", ".tif", ".ppm", ".webp", ".jp2", ".j2k", ".pcx", ".tga", ".TGA", ".apng"],
)
def test_lossless_formats_are_read_exactly(tmp_path: Path, rgb: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    Image.fromarray(rgb).save(path, **LOSSLESS.get(suffix, {}))
    np.testing.assert_array_equal(check(read_image(path), path), rgb)


@pytest.mark.skipif("avif" not in features.get_supported(), reason="this Pillow has no AVIF")
def test_avif_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.avif"
    Image.new("RGB", (9, 6), (200, 30, 90)).save(path, quality=100)
    assert np.abs(check(read_image(path), path).astype(int) - (200, 30, 90)).max() <= 3


def test_a_damaged_file_does_not_pass_for_targa(tmp_path: Path) -> None:
    Image.new("RGB", (9, 6)).save(tmp_path / "x.tga")
    (tmp_path / "x.tga").rename(tmp_path / "x.jpg")
    with pytest.raises(ImageError, match="not an image"):
        read_image(tmp_path / "x.jpg")


def test_paths_that_the_system_refuses(tmp_path: Path) -> None:
    (tmp_path / "loop.png").symlink_to("loop.png")
    for name in ("loop.png", "n" * 300 + ".png", "a\0b.png"):
        with pytest.raises(ImageError, match="png"):
            read_image(tmp_path / name)


# Where the stored pixel (row, column) of a 2-D array goes, by the figure in Exif 2.32, 4.6.4:
# orientation says which side of the scene the stored first row and first column are.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_exif_orientation_is_applied(
    tmp_path: Path, rgb: np.ndarray, suffix: str, orientation: int
) -> None:
    path = tmp_path / f"x{suffix}"
    kwargs: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(rgb).save(path, exif=exif_with(orientation), **kwargs)
    upright = check(read_image(path), path)
    np.testing.assert_array_equal(upright, UPRIGHT[orientation](rgb))
    if suffix != ".tif":  # which Pillow turns itself
        np.testing.assert_array_equal(read_image(path, upright=False), rgb)
        np.testing.assert_array_equal(turn_as_stored(upright, path), rgb)
        assert read_image_hw(path, upright=False) == read_image(path, upright=False).shape[:2]
        np.testing.assert_array_equal(turn_as_stored(upright[..., 0], path), rgb[..., 0])


def test_exif_orientation_of_a_jpeg(tmp_path: Path) -> None:
    gray = np.full((16, 40), 20, np.uint8)
    gray[:8, :8] = 230  # the corner shows where it went
    path = tmp_path / "x.jpg"
    Image.fromarray(gray).save(path, exif=exif_with(6), quality=95)
    img = check(read_image(path), path)
    assert img.shape == (40, 16, 3)
    assert img[2:6, 10:14].min() > 200
    assert img[20:, :].max() < 60


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_unknown_orientation_is_passed_over(
    tmp_path: Path, rgb: np.ndarray, orientation: int
) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(rgb).save(path, exif=exif_with(orientation))
    np.testing.assert_array_equal(check(read_image(path), path), rgb)


def test_a_damaged_exif_block_does_not_lose_the_image(tmp_path: Path, rgb: np.ndarray) -> None:
    path = tmp_path / "x.webp"
    Image.fromarray(rgb).save(path, exif=exif_with(6), lossless=True)
    data = path.read_bytes()
    at = data.index(b"MM\x00*")
    path.write_bytes(data[:at] + b"MM\x7f*" + data[at + 4 :])
    np.testing.assert_array_equal(check(read_image(path), path), rgb)


def test_grayscale_fills_three_channels(tmp_path: Path, rgb: np.ndarray) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(rgb[..., 0]).save(path)
    img = check(read_image(path), path)
    np.testing.assert_array_equal(img, np.stack([rgb[..., 0]] * 3, axis=-1))


def test_one_bit_becomes_black_and_white(tmp_path: Path, rgb: np.ndarray) -> None:
    path = tmp_path / "x.png"
    bits = rgb[..., 0] > 127
    Image.fromarray(bits).save(path)
    img = check(read_image(path), path)
    np.testing.assert_array_equal(img, np.where(bits, 255, 0)[..., None].repeat(3, axis=2))


def test_palette(tmp_path: Path) -> None:
    index = np.arange(54, dtype=np.uint8).reshape(HW) % 3
    img = Image.fromarray(index)
    img.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    img.save(tmp_path / "x.gif")
    read = check(read_image(tmp_path / "x.gif"), tmp_path / "x.gif")
    colors = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]], np.uint8)
    np.testing.assert_array_equal(read, colors[index])


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 51])])
def test_palette_with_transparency_is_composed_over_white(
    tmp_path: Path, transparency: int | bytes
) -> None:
    img = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    img.putpalette([10, 20, 30, 40, 50, 60, 0, 0, 0])
    path = tmp_path / "x.png"
    img.save(path, transparency=transparency)
    last = [0, 0, 0] if transparency == 1 else [204, 204, 204]  # black at alpha 51/255 = 0.2
    read = check(read_image(path), path)
    np.testing.assert_array_equal(read, [[[10, 20, 30], [255, 255, 255], last]])


@pytest.mark.parametrize(("mode", "channels"), [("RGBA", 4), ("LA", 2)])
def test_alpha_is_composed_over_white(tmp_path: Path, mode: str, channels: int) -> None:
    data = np.zeros((1, 3, channels), np.uint8)
    data[..., :-1] = 100
    data[0, :, -1] = [255, 0, 51]
    path = tmp_path / "x.png"
    Image.fromarray(data).save(path)
    with Image.open(path) as stored:
        assert stored.mode == mode
    # 0.2 * 100 + 0.8 * 255 = 224
    np.testing.assert_array_equal(check(read_image(path), path)[0, :, 0], [100, 255, 224])


def test_one_transparent_colour_of_rgb(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    data = np.array([[[1, 2, 3], [1, 2, 4]]], np.uint8)
    Image.fromarray(data).save(path, transparency=(1, 2, 3))
    np.testing.assert_array_equal(check(read_image(path), path), [[[255, 255, 255], [1, 2, 4]]])


def test_cmyk(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    cmyk = np.zeros((16, 24, 4), np.uint8)
    cmyk[:, 8:16, 0] = 255  # cyan ink
    cmyk[:, 16:, 3] = 255  # black ink
    Image.fromarray(cmyk, mode="CMYK").save(path, quality=95)
    img = check(read_image(path), path)
    for column, color in [(3, (255, 255, 255)), (11, (0, 255, 255)), (20, (0, 0, 0))]:
        np.testing.assert_allclose(img[8, column], color, atol=8)


def test_16_bit_gray_and_rgb_are_scaled_alike(tmp_path: Path, encode_png: PngWriter) -> None:
    values = np.array([[0, 255, 256, 4095, 32768, 65535]], np.uint16)
    expected = np.array([[0, 0, 1, 15, 128, 255]], np.uint8)[..., None].repeat(3, axis=2)
    gray, color, tiff = tmp_path / "g.png", tmp_path / "c.png", tmp_path / "t.tif"
    samples = values.astype(">u2")
    gray.write_bytes(encode_png((1, 6), 0, 16, samples.tobytes()))
    color.write_bytes(encode_png((1, 6), 2, 16, samples.repeat(3).tobytes()))
    Image.fromarray(values).save(tiff)
    for path in (gray, color, tiff):
        np.testing.assert_array_equal(check(read_image(path), path), expected)


def test_16_bit_with_alpha(tmp_path: Path, encode_png: PngWriter) -> None:
    path = tmp_path / "x.png"
    samples = np.array([[65535, 0, 25700, 65535], [0, 0, 0, 0]], ">u2")
    path.write_bytes(encode_png((1, 2), 6, 16, samples.tobytes()))
    expected = [[[255, 0, 100], [255, 255, 255]]]
    np.testing.assert_array_equal(check(read_image(path), path), expected)


def test_16_bit_pgm(tmp_path: Path) -> None:
    path = tmp_path / "x.pgm"
    path.write_bytes(b"P5 2 1 4095\n" + np.array([0, 4095], ">u2").tobytes())
    np.testing.assert_array_equal(check(read_image(path), path)[0, :, 0], [0, 255])


@pytest.mark.parametrize(("dtype", "word"), [(np.float32, "floating"), (np.int32, "32-bit")])
def test_samples_without_a_known_range_are_refused(tmp_path: Path, dtype: Any, word: str) -> None:
    path = tmp_path / "x.tif"
    Image.fromarray(np.ones(HW, dtype)).save(path)
    with pytest.raises(ImageError, match=rf"x\.tif: {word}.*8 or 16 bits"):
        read_image(path)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    path = tmp_path / "x.gif"
    frames = [Image.new("L", (4, 3), value) for value in (10, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert np.unique(check(read_image(path), path)).tolist() == [10]


def test_1x1(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.new("RGB", (1, 1), (1, 2, 3)).save(path)
    np.testing.assert_array_equal(check(read_image(path), path), [[[1, 2, 3]]])


def test_108_megapixels(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "x.png"
    img = Image.new("1", (12_000, 9_000))
    img.putpixel((11_999, 0), 1)
    img.save(path, compress_level=1)
    read = check(read_image(path), path)
    assert read.shape == (9_000, 12_000, 3)
    assert read[0, 11_999].tolist() == [255, 255, 255]
    assert not read[1:, ::97].any()
    assert not recwarn.list


def test_a_bomb_is_refused_with_its_size(tmp_path: Path, encode_png: PngWriter) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(encode_png((30_000, 20_000), 0, 1, b""))
    for read in (read_image, read_image_hw):
        with pytest.raises(ImageError, match=r"x\.png: too large .*600000000 pixels.*178956970"):
            read(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_truncated_files_are_refused(tmp_path: Path, kind: str, kept: float) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    data = buffer.getvalue()
    path = tmp_path / "x.img"
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ImageError, match=r"x\.img: "):
        read_image(path)


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.touch()
    for read in (read_image, read_image_hw):
        with pytest.raises(ImageError, match=r"x\.jpg: the file is empty"):
            read(path)


@pytest.mark.parametrize(
    "content", [b"just text\n" * 50, b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\xff\xd8"]
)
def test_what_is_no_image_renamed_to_jpg(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    for read in (read_image, read_image_hw):
        with pytest.raises(ImageError, match=r"x\.jpg: "):
            read(path)


@pytest.mark.parametrize("name", ["x.HEIC", "x.heif", "x.jpg"])
def test_a_heic_photograph_names_the_cure(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic" + bytes(50))
    with pytest.raises(ImageError, match=r"unknown kind \(export HEIC photographs as JPEG\)"):
        read_image(tmp_path / name)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for read in (read_image, read_image_hw):
        with pytest.raises(ImageError, match=r"none\.jpg: there is no such file"):
            read(tmp_path / "none.jpg")
        with pytest.raises(ImageError, match="not a file"):
            read(tmp_path)


def test_the_content_decides_not_the_suffix(tmp_path: Path, rgb: np.ndarray) -> None:
    path = tmp_path / "really a png.jpg"
    Image.fromarray(rgb).save(path, "PNG")
    np.testing.assert_array_equal(check(read_image(path), path), rgb)


def _seed_files() -> list[bytes]:
    rgb = np.random.default_rng(2).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    files = []
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "PCX"):
        buffer = io.BytesIO()
        Image.fromarray(rgb).save(buffer, kind)
        files.append(buffer.getvalue())
    return files


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    data=st.sampled_from(_seed_files()),
    edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_a_damaged_file_is_read_or_refused_but_nothing_else(
    tmp_path: Path, data: bytes, edits: list[tuple[int, int]]
) -> None:
    damaged = bytearray(data)
    for position, value in edits:
        damaged[position % len(damaged)] = value
    path = tmp_path / "x.img"
    path.write_bytes(damaged)
    try:
        img = read_image(path)
    except ImageError as err:
        assert "x.img" in str(err)
    else:
        check(img, path)


def test_too_little_memory_is_no_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 3)).save(path)

    def load(self: Image.Image) -> None:
        raise MemoryError("Unable to allocate 1 GiB")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(ImageError, match=r"a.png: not enough memory to decode it \(Unable to"):
        read_image(path)
