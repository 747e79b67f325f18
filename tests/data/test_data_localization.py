"""CUB, ILSVRC and wsolevaluation in miniature copies of their layouts; score maps in its format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from adcam.data import cub, imagenet, wsol
from adcam.data.cub import load_cub
from adcam.data.imagenet import load_ilsvrc
from adcam.data.score_maps import find_score_map, read_score_map, write_score_map
from adcam.data.wsol import load_wsol, read_wsol_mask, read_wsol_metadata

BIRDS = (
    "001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg",
    "001.Black_footed_Albatross/Black_Footed_Albatross_0009_34.jpg",
    "002.Laysan_Albatross/Laysan_Albatross_0002_1027.jpg",
)


def write_image(path: Path, hw: tuple[int, int] = (20, 30), orientation: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (hw[1], hw[0])).save(path, format="JPEG", exif=exif)


def replace_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.fixture
def cub_root(tmp_path: Path) -> Path:
    root = tmp_path / "CUB_200_2011"
    for bird in BIRDS:
        write_image(root / "images" / bird)
    (root / "classes.txt").write_text("1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n")
    (root / "images.txt").write_text("".join(f"{i} {b}\n" for i, b in enumerate(BIRDS, start=1)))
    (root / "image_class_labels.txt").write_text("1 1\n2 1\n3 2\n")
    (root / "train_test_split.txt").write_text("1 0\n2 1\n3 0\n")
    (root / "bounding_boxes.txt").write_text(
        "1 6.0 2.0 20.0 13.0\n2 1.9 2.0 3.9 4.0\n3 0.0 0.0 30.0 20.0\n"
    )
    return root


def test_cub_classes_must_be_in_order(cub_root: Path) -> None:
    (cub_root / "classes.txt").write_text("2 002.Laysan_Albatross\n1 001.Black_footed_Albatross\n")
    with pytest.raises(ValueError, match=r"classes\.txt, line 1: expected class 1, got '2'"):
        load_cub(cub_root, "train", expected_counts={})


@pytest.mark.parametrize("split", ["train", "train-weaksup"])
def test_cub_train(cub_root: Path, split: str) -> None:
    dataset = load_cub(cub_root, split, expected_counts={"train": 1, "test": 2})
    (record,) = dataset.records
    assert record.img_id == "001.Black_footed_Albatross/Black_Footed_Albatross_0009_34"
    assert record.class_ids == (0,)
    # each number truncated, then added
    assert record.boxes == ((1, 2, 4, 6),)
    assert dataset.split == split


def test_cub_test(cub_root: Path) -> None:
    dataset = load_cub(cub_root, "test", expected_counts={})
    dataset.check_files()
    assert [record.class_ids for record in dataset.records] == [(0,), (1,)]
    assert [record.boxes for record in dataset.records] == [((6, 2, 26, 15),), ((0, 0, 30, 20),)]
    assert dataset.class_set.classes == ("001.Black_footed_Albatross", "002.Laysan_Albatross")
    sample = dataset[0]
    assert sample.ori_hw == (20, 30)
    assert sample.boxes is not None and sample.boxes.dtype == np.int64
    assert sample.boxes.tolist() == [[6, 2, 26, 15]]


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("image_class_labels.txt", "1 1", "1 3", r"labels\.txt, line 1: the class must be 1\.\.2"),
        (
            "image_class_labels.txt",
            "3 2",
            "",
            r"1 images of images\.txt have no entry here, such as .*3",
        ),
        ("train_test_split.txt", "2 1", "2 x", "line 2: is_train must be a whole number, got 'x'"),
        ("train_test_split.txt", "2 1", "2 7", r"is_train must be 0\.\.1, got 7"),
        ("bounding_boxes.txt", "6.0 2.0 20.0", "6.0 2.0", "line 1: a box must be four numbers"),
        ("bounding_boxes.txt", "6.0", "nan", "line 1: a box must be four numbers"),
        ("bounding_boxes.txt", "6.0", "-6.0", r"0 <= x0 <= x1 .*got \(-6, 2, 14, 15\)"),
        ("images.txt", "2 001", "1 001", r"images\.txt, line 2: image '1' is given twice"),
        (
            "images.txt",
            "1 001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg",
            "1",
            "ex",
        ),
    ],
)
def test_cub_errors_name_the_place(
    cub_root: Path, file: str, old: str, new: str, message: str
) -> None:
    replace_text(cub_root / file, old, new)
    with pytest.raises(ValueError, match=message):
        load_cub(cub_root, "test", expected_counts={})


def test_cub_counts_and_files(cub_root: Path) -> None:
    assert sum(cub.EXPECTED_COUNTS.values()) == 11788
    with pytest.raises(ValueError, match="2 images, but test has 5794; for a part"):
        load_cub(cub_root, "test")
    with pytest.raises(ValueError, match=r"CUB has the splits train, test, .*got 'train-fullsup'"):
        load_cub(cub_root, "train-fullsup")
    (cub_root / "bounding_boxes.txt").unlink()
    with pytest.raises(ValueError, match=r"bounding_boxes\.txt: cannot be read"):
        load_cub(cub_root, "test", expected_counts={})


def xml(*objects: tuple[str, tuple[object, ...]]) -> str:
    body = "".join(
        f"<object><name>{synset}</name><bndbox><xmin>{b[0]}</xmin><ymin>{b[1]}</ymin>"
        f"<xmax>{b[2]}</xmax><ymax>{b[3]}</ymax></bndbox></object>"
        for synset, b in objects
    )
    return f"<annotation><filename>x</filename>{body}</annotation>"


@pytest.fixture
def ilsvrc_root(tmp_path: Path) -> Path:
    root = tmp_path / "ILSVRC"
    lists, data = root / "ImageSets" / "CLS-LOC", root / "Data" / "CLS-LOC"
    lists.mkdir(parents=True)
    (tmp_path / "LOC_synset_mapping.txt").write_text(
        "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\n"
    )
    (lists / "train_cls.txt").write_text("n01440764/n01440764_10026 1\nn03126707/n03126707_5 2\n")
    (lists / "val.txt").write_text("ILSVRC2012_val_00000001 1\nILSVRC2012_val_00000002 2\n")
    for name in ("train/n01440764/n01440764_10026", "train/n03126707/n03126707_5"):
        write_image(data / f"{name}.JPEG")
    annotations = root / "Annotations" / "CLS-LOC" / "val"
    annotations.mkdir(parents=True)
    for number in (1, 2):
        write_image(data / "val" / f"ILSVRC2012_val_0000000{number}.JPEG")
    (annotations / "ILSVRC2012_val_00000001.xml").write_text(
        xml(("n02012849", (1, 2, 13, 14)), ("n02012849", (3, 4, 25, 16)))
    )
    (annotations / "ILSVRC2012_val_00000002.xml").write_text(xml(("n01440764", (0, 0, 30, 20))))
    return root


def test_ilsvrc_train(ilsvrc_root: Path) -> None:
    dataset = load_ilsvrc(ilsvrc_root, "train-weaksup", expected_counts={"train": 2})
    dataset.check_files()
    assert [record.class_ids for record in dataset.records] == [(0,), (2,)]
    assert [record.boxes for record in dataset.records] == [None, None]
    assert dataset.class_set.num_fg_classes == 3
    assert dataset[0].boxes is None


@pytest.mark.parametrize("split", ["val", "test"])
def test_ilsvrc_val_has_several_boxes(ilsvrc_root: Path, split: str) -> None:
    dataset = load_ilsvrc(ilsvrc_root, split, expected_counts={})
    dataset.check_files()
    assert [record.class_ids for record in dataset.records] == [(1,), (0,)]
    assert dataset.records[0].boxes == ((1, 2, 13, 14), (3, 4, 25, 16))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (xml(("dog", (0, 0, 1, 1))), "unknown class 'dog'; legal are the 3 synsets"),
        (xml(), r"expected objects of one class, got \[\]"),
        (xml(("n01440764", (0, 0, 1, 1)), ("n02012849", (0, 0, 1, 1))), "of one class"),
        (xml(("n01440764", (0, 0, "", 1))), r"object 1: a box must be four whole numbers"),
        (xml(("n01440764", (5, 0, 1, 1))), r"object 1: a box needs .*got \(5, 0, 1, 1\)"),
        ("<annotation>", "not an XML file"),
    ],
)
def test_ilsvrc_errors_name_the_place(ilsvrc_root: Path, text: str, message: str) -> None:
    path = ilsvrc_root / "Annotations" / "CLS-LOC" / "val" / "ILSVRC2012_val_00000002.xml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"00000002\.xml.*{message}"):
        load_ilsvrc(ilsvrc_root, "val", expected_counts={})


def test_ilsvrc_counts_and_splits(ilsvrc_root: Path) -> None:
    assert imagenet.EXPECTED_COUNTS == {"train": 1281167, "val": 50000}
    with pytest.raises(ValueError, match="2 images, but val has 50000"):
        load_ilsvrc(ilsvrc_root, "test")
    with pytest.raises(ValueError, match=r"ILSVRC has the splits .*got 'train-fullsup'"):
        load_ilsvrc(ilsvrc_root, "train-fullsup")
    (ilsvrc_root / "Annotations" / "CLS-LOC" / "val" / "ILSVRC2012_val_00000001.xml").unlink()
    with pytest.raises(ValueError, match=r"00000001\.xml: there is no such annotation"):
        load_ilsvrc(ilsvrc_root, "val", expected_counts={})


@pytest.fixture
def metadata_root(tmp_path: Path) -> Path:
    root = tmp_path / "metadata" / "CUB"
    for folder in ("train", "val", "test"):
        (root / folder).mkdir(parents=True)
        (root / folder / "image_ids.txt").write_text("a/1.jpg\nb/2.jpeg\n")
        (root / folder / "class_labels.txt").write_text("a/1.jpg,0\nb/2.jpeg,2\nc/3.jpg,1\n")
        if folder != "train":
            (root / folder / "image_sizes.txt").write_text("a/1.jpg,30,20\nb/2.jpeg,20,30\n")
            (root / folder / "localization.txt").write_text(
                "a/1.jpg,1,2,30,20\nb/2.jpeg,0,0,4,4\nb/2.jpeg,5,6,7,8\n"
            )
    return root


def test_wsol_metadata(metadata_root: Path) -> None:
    metadata = read_wsol_metadata(metadata_root / "val")
    assert metadata.image_ids == ("a/1.jpg", "b/2.jpeg")
    assert metadata.class_labels == {"a/1.jpg": 0, "b/2.jpeg": 2}
    assert metadata.image_sizes == {"a/1.jpg": (20, 30), "b/2.jpeg": (30, 20)}
    assert metadata.boxes["b/2.jpeg"] == ((0, 0, 4, 4), (5, 6, 7, 8))
    assert metadata.masks == {}
    assert read_wsol_metadata(metadata_root / "train").boxes == {}


@pytest.mark.parametrize(
    ("split", "folder"),
    [("train-weaksup", "train"), ("train-fullsup", "val"), ("test", "test"), ("val", "val")],
)
def test_wsol_splits(metadata_root: Path, tmp_path: Path, split: str, folder: str) -> None:
    for name in ("a/1.jpg", "b/2.jpeg"):
        write_image(tmp_path / "images" / name)
    dataset = load_wsol(tmp_path / "images", metadata_root, split, expected_counts={split: 2})
    dataset.check_files()
    assert dataset.split == split
    assert [record.img_id for record in dataset.records] == ["a/1", "b/2"]
    assert [record.class_ids for record in dataset.records] == [(0,), (2,)]
    assert dataset.class_set.classes == ("0", "1", "2")
    boxes = [record.boxes for record in dataset.records]
    assert boxes == [None, None] if folder == "train" else boxes[0] == ((1, 2, 30, 20),)
    assert dataset[0].boxes_hw == (None if folder == "train" else (20, 30))
    named = load_wsol(tmp_path, metadata_root, split, classes=["x", "y", "z", "unused"])
    assert named.class_set.num_fg_classes == 4


def test_images_are_read_in_the_pixels_that_their_boxes_are_in(
    cub_root: Path, ilsvrc_root: Path, metadata_root: Path, tmp_path: Path
) -> None:
    """The codes of TS-CAM and wsolevaluation do not turn images as EXIF asks for."""
    images = tmp_path / "images"
    data_sets = (
        load_cub(cub_root, "test", expected_counts={}),
        load_ilsvrc(ilsvrc_root, "val", expected_counts={}),
        load_wsol(images, metadata_root, "test"),
    )
    for dataset in data_sets:
        path = dataset.records[0].img_path
        write_image(path, orientation=6)
        with Image.open(path) as stored:
            assert stored.getexif()[0x0112] == 6
        assert dataset[0].ori_hw == dataset[:1][0].ori_hw == (20, 30)


def test_wsol_counts_classes_and_splits(metadata_root: Path) -> None:
    with pytest.raises(ValueError, match=r"train-fullsup has 1000; .* or \{\} for"):
        load_wsol("x", metadata_root, "train-fullsup", expected_counts=wsol.EXPECTED_COUNTS["CUB"])
    with pytest.raises(ValueError, match="class 2 has no name; 2 are given"):
        load_wsol("x", metadata_root, "test", classes=["a", "b"])
    with pytest.raises(ValueError, match=r"no folder 'dev' .*the folders there: test, train, val"):
        load_wsol("x", metadata_root, "dev")


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("class_labels.txt", "b/2.jpeg,2\n", "", r"1 images of image_ids.* such as 'b/2\.jpeg'"),
        ("class_labels.txt", ",2", ",dog", "line 2: the class must be a whole number, got 'dog'"),
        ("class_labels.txt", ",2", ",-1", "line 2: the class must be at least 0, got -1"),
        ("class_labels.txt", "b/2.jpeg,2", "b/2.jpeg", "line 2: expected 'path,class', got"),
        ("image_sizes.txt", "30,20", "0,20", "line 1: the width must be at least 1, got 0"),
        ("image_sizes.txt", "20,30", "20,30,3", "line 2: expected 'path,width,height'"),
        ("localization.txt", "a/1.jpg,1,2,30,20", "a/1.jpg,1,2,30,1", r"got \(1, 2, 30, 1\)"),
        ("localization.txt", "0,0,4,4", "0,0,4,4.5", "line 2: a coordinate must be a whole"),
        ("localization.txt", "a/1.jpg,1,2,30,20\n", "", "1 images .* such as 'a/1.jpg'"),
        ("image_ids.txt", "b/2.jpeg", "a/1.jpg", "line 2: path 'a/1.jpg' is given twice"),
        ("image_ids.txt", "b/2.jpeg", "../2.jpeg", "paths must stay below their folder"),
        ("image_ids.txt", "a/1.jpg\nb/2.jpeg\n", "\n", r"image_ids\.txt: the file is empty"),
    ],
)
def test_wsol_errors_name_the_place(
    metadata_root: Path, file: str, old: str, new: str, message: str
) -> None:
    replace_text(metadata_root / "val" / file, old, new)
    with pytest.raises(ValueError, match=message):
        read_wsol_metadata(metadata_root / "val")


def test_voc_animals_metadata(voc_animals: Path) -> None:
    for split, count in (("train", 429), ("val", 192)):
        dataset = load_wsol(voc_animals, voc_animals / "metadata", split)
        assert len(dataset) == count
        dataset.check_files()
        assert all(record.boxes for record in dataset.records)


@pytest.fixture
def openimages(tmp_path: Path) -> Path:
    folder = tmp_path / "metadata" / "OpenImages" / "val"
    folder.mkdir(parents=True)
    (folder / "image_ids.txt").write_text("val/x/1.jpg\n")
    (folder / "class_labels.txt").write_text("val/x/1.jpg,0\n")
    (folder / "localization.txt").write_text(
        "val/x/1.jpg,val/x/1_a.png,val/x/1_ignore.png\nval/x/1.jpg,val/x/1_b.png,\n"
    )
    return folder


def test_openimages_masks(openimages: Path, tmp_path: Path) -> None:
    masks, ignore = read_wsol_metadata(openimages).masks["val/x/1.jpg"]
    assert (masks, ignore) == (("val/x/1_a.png", "val/x/1_b.png"), "val/x/1_ignore.png")
    generator = np.random.default_rng(0)
    (tmp_path / "val" / "x").mkdir(parents=True)
    drawn = {}
    for name, hw in zip((*masks, ignore), ((13, 17), (31, 19), (8, 8)), strict=True):
        drawn[name] = generator.random(hw) < 0.3
        # one bit a pixel, as the data set has them
        Image.fromarray(drawn[name]).save(tmp_path / name)

    def resized(name: str) -> np.ndarray:
        pixels = np.float32(cv2.imread(str(tmp_path / name), cv2.IMREAD_GRAYSCALE))
        return cv2.resize(pixels, (16, 24), interpolation=cv2.INTER_NEAREST) > 0.5

    mask = read_wsol_mask(tmp_path, masks, ignore, hw=(24, 16))
    is_object = resized(masks[0]) | resized(masks[1])
    assert mask.dtype == np.uint8
    assert np.array_equal(mask == 1, is_object)
    assert np.array_equal(mask == 255, resized(ignore) & ~is_object)
    assert set(np.unique(mask)) == {0, 1, 255}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",val/x/1_ignore.png", ",", "line 1: the first mask of an image comes with its ignore"),
        ("1_b.png,", "1_b.png,val/x/1_ignore.png", "line 2: the first mask of an image comes"),
        ("val/x/1_a.png", "/etc/x.png", "must stay below their folder, got '/etc/x.png'"),
        ("val/x/1_ignore.png", "../x.png", r"must stay below their folder, got '\.\./x.png'"),
    ],
)
def test_openimages_errors(openimages: Path, old: str, new: str, message: str) -> None:
    replace_text(openimages / "localization.txt", old, new)
    with pytest.raises(ValueError, match=message):
        read_wsol_metadata(openimages)


def test_score_maps_come_back(tmp_path: Path) -> None:
    score_map = np.random.default_rng(0).random((6, 9))
    path = write_score_map(tmp_path, "val2/0/x.jpeg", score_map)
    assert (
        path == tmp_path / "val2" / "0" / "x.jpeg.npy" == find_score_map(tmp_path, "val2/0/x.jpeg")
    )
    assert np.array_equal(np.load(path, allow_pickle=False), score_map)
    assert np.array_equal(read_score_map(path), score_map)
    narrow = write_score_map(tmp_path, "y.jpg", score_map.astype(np.float32))
    assert read_score_map(narrow).dtype == np.float64
    short = tmp_path / "z.npy"
    narrow.rename(short)
    assert find_score_map(tmp_path, "z.jpg") == short
    assert find_score_map(tmp_path, "none.jpg") == tmp_path / "none.jpg.npy"


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"no array"), "cannot be read as a score map"),
        (lambda path: path.write_bytes(b""), "cannot be read as a score map"),
        (lambda path: np.save(path, np.array([{"a": 1}], dtype=object)), "cannot be read"),
        (lambda path: np.save(path, np.zeros((2, 2), np.uint8)), "floating point"),
        (lambda path: np.save(path, np.zeros((1, 2, 2))), r"got float64 \(1, 2, 2\)"),
        (lambda path: np.save(path, np.full((2, 2), np.nan)), "without NaN"),
        (lambda path: np.save(path, np.full((2, 2), 1.01)), r"\[1\.01, 1\.01\]"),
    ],
)
def test_bad_score_maps(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "x.npy"
    write(path)
    with pytest.raises(ValueError, match=rf"x\.npy: .*{message}"):
        read_score_map(path)


def test_score_maps_refuse(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read as a score map"):
        read_score_map(tmp_path / "absent.npy")
    np.savez(tmp_path / "x.npz", a=np.zeros((2, 2)))
    with pytest.raises(ValueError, match="expected one array, got an archive"):
        read_score_map(tmp_path / "x.npz")
    for image_id in ("../x.jpg", "/x.jpg", ""):
        with pytest.raises(ValueError, match="paths must stay below their folder"):
            write_score_map(tmp_path, image_id, np.zeros((2, 2)))
        with pytest.raises(ValueError, match="paths must stay below their folder"):
            find_score_map(tmp_path, image_id)
    with pytest.raises(ValueError, match=r"scores must lie in \[0, 1\]"):
        write_score_map(tmp_path, "x.jpg", np.full((2, 2), -0.5))
    assert not list(tmp_path.glob("*.npy"))
