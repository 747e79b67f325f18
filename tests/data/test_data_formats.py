"""Class maps of other projects, as they write them, tensors included; and files that are none."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import object_npy_header
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from adcam.data.formats import read_cam_file
from adcam.data.object_npy import load_object_npy

HW = (5, 9)


def make_maps(count: int, hw: tuple[int, int] = HW) -> np.ndarray:
    maps = np.random.default_rng(0).random((count, *hw), dtype=np.float32)
    return maps / maps.max(axis=(1, 2), keepdims=True)


def saved(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "2007_000032.npy"
    np.save(path, np.array(content, dtype=object), allow_pickle=True)
    return path


def irn(keys: Any = (3, 14)) -> dict[str, Any]:
    """As ``step/make_cam.py`` of IRN: two tensors and an array."""
    maps = make_maps(len(keys))
    return {
        "keys": torch.tensor(keys),
        "cam": torch.from_numpy(maps)[:, ::4, ::4],
        "high_res": maps,
    }


def psa_crf() -> dict[int, np.ndarray]:
    scores = make_maps(3)
    return dict(zip((0, 4, 15), scores / scores.sum(axis=0), strict=True))


def test_irn(tmp_path: Path) -> None:
    file = read_cam_file(saved(tmp_path, irn()))
    assert (file.cam_format, file.maps.class_ids, file.background) == ("irn", (3, 14), None)
    assert file.maps.score_maps.dtype == np.float32
    np.testing.assert_array_equal(file.maps.score_maps, make_maps(2))


def test_psa(tmp_path: Path) -> None:
    maps = make_maps(2)
    content = {14: maps[0], 0: maps[1]}  # 0 is the first class here, not background
    file = read_cam_file(saved(tmp_path, content))
    assert (file.cam_format, file.maps.class_ids) == ("psa", (0, 14))
    np.testing.assert_array_equal(file.maps.score_maps, maps[::-1])


def test_psa_after_crf(tmp_path: Path) -> None:
    content = psa_crf()
    file = read_cam_file(saved(tmp_path, content))
    assert (file.cam_format, file.maps.class_ids) == ("psa_crf", (3, 14))
    np.testing.assert_array_equal(file.maps.score_maps, [content[4], content[15]])
    np.testing.assert_array_equal(file.background, content[0])
    # Asked for by name, the numbers are taken as that format has them.
    assert read_cam_file(saved(tmp_path, content), cam_format="psa").maps.class_ids == (0, 4, 15)
    with pytest.raises(ValueError, match="background under 0"):
        read_cam_file(saved(tmp_path, {3: make_maps(1)[0]}), cam_format="psa_crf")


def test_an_image_without_classes_after_crf(tmp_path: Path) -> None:
    file = read_cam_file(saved(tmp_path, {0: np.ones(HW, np.float32)}))
    assert (file.cam_format, file.maps.score_maps.shape) == ("psa_crf", (0, *HW))


def test_clip_es(tmp_path: Path) -> None:
    maps = make_maps(2).astype(np.float16)
    file = read_cam_file(saved(tmp_path, {"keys": np.array([14, 3]), "attn_highres": maps}))
    assert (file.cam_format, file.maps.class_ids) == ("clip_es", (3, 14))
    np.testing.assert_array_equal(file.maps.score_maps, maps[::-1].astype(np.float32))


def test_puzzlecam(tmp_path: Path) -> None:
    maps = make_maps(2)
    content = {"keys": np.array([0, 4, 15]), "cam": torch.zeros(2, 2, 3), "hr_cam": maps}
    file = read_cam_file(saved(tmp_path, content))
    assert (file.cam_format, file.maps.class_ids) == ("puzzlecam", (3, 14))
    np.testing.assert_array_equal(file.maps.score_maps, maps)
    content["keys"] = np.array([3, 4, 15])
    with pytest.raises(ValueError, match="begin with a 0"):
        read_cam_file(saved(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected a dict of maps"),
        ([1], "expected"),
        ({"cam": make_maps(1)}, "a dict with 'cam' is of none of the formats"),
        ({3: make_maps(1)[0], "x": 1}, "is of none of the formats"),
        ({20: make_maps(1)[0]}, r"class 20 is not in 0\.\.19"),
        ({-1: make_maps(1)[0]}, "class -1 is not in"),
        ({3: make_maps(1)[0] * 1.1}, r"scores must lie in \[0, 1\]"),
        ({3: make_maps(1)[0] * np.float32("nan")}, "scores must lie in"),
        ({3: make_maps(1)[0], 4: make_maps(1, (9, 5))[0]}, "of one size"),
        ({3: make_maps(1)}, r"\(K, H, W\)"),
        ({3: np.zeros(HW, np.uint8)}, "floating point"),
        (irn((3, 3)), "a class is given twice"),
        (irn() | {"keys": torch.tensor([3])}, "1 classes but 2 maps"),
        (irn() | {"keys": torch.tensor([3.0, 4.0])}, "keys must be whole numbers"),
    ],
)
def test_refusals_name_the_file(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(ValueError, match=rf"2007_000032\.npy: .*{message}"):
        read_cam_file(saved(tmp_path, content))


def test_another_format_than_the_one_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this is a file of format irn, not clip_es"):
        read_cam_file(saved(tmp_path, irn()), cam_format="clip_es")
    with pytest.raises(ValueError, match="the format must be 'auto', 'irn'"):
        read_cam_file(saved(tmp_path, irn()), cam_format="sem")
    with pytest.raises(FileNotFoundError):
        read_cam_file(tmp_path / "none.npy")


TENSORS = {
    "float": torch.arange(6.0).reshape(2, 3),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "part": torch.arange(24).reshape(4, 6)[1::2, 2:5],
    "scalar": torch.tensor(3),
    "empty": torch.zeros(0, 4),
    "half": torch.tensor([0.5, 2], dtype=torch.float16),
    "double": torch.tensor([[0.1]], dtype=torch.float64),
    "bool": torch.tensor([True, False]),
    "bytes": torch.tensor([1, 255], dtype=torch.uint8),
    "short": torch.tensor([-3], dtype=torch.int16),
    "with gradient": torch.ones(2, requires_grad=True),
}


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("protocol", range(6))
def test_tensors_become_arrays(tmp_path: Path, name: str, protocol: int) -> None:
    tensor = TENSORS[name]
    data = pickle.dumps(np.array({"x": tensor}, dtype=object), protocol=protocol)
    path = tmp_path / "x.npy"
    path.write_bytes(object_npy_header() + data)
    content: Any = load_object_npy(path)
    expected = tensor.detach().numpy()
    assert content["x"].dtype == expected.dtype
    np.testing.assert_array_equal(content["x"], expected)


@given(arrays(np.float32, array_shapes(max_dims=3, max_side=4), elements=st.floats(0, 1, width=32)))
def test_any_tensor(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray) -> None:
    path = saved(tmp_path_factory.mktemp("tensor"), {"x": torch.from_numpy(array)})
    content: Any = load_object_npy(path)
    np.testing.assert_array_equal(content["x"], array)


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def rebuild(storage: object, offset: Any, size: Any, stride: Any) -> Call:
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {})


def storage(data: bytes | None = None) -> Call:
    buffer = io.BytesIO()
    torch.save(torch.zeros(6).untyped_storage(), buffer, _use_new_zipfile_serialization=False)
    if data is None:
        buffer = io.BytesIO()
        typed = torch.storage.TypedStorage(
            wrap_storage=torch.zeros(6).untyped_storage(), dtype=torch.float32, _internal=True
        )
        torch.save(typed, buffer, _use_new_zipfile_serialization=False)
        data = buffer.getvalue()
    return Call(torch.storage._load_from_bytes, data)


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (7,), (1,)),
        (1, (6,), (1,)),
        (0, (2, 3), (4, 1)),
        (0, (10**9,), (0,)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (-2,), (1,)),
        (0, (2,), (1, 1)),
        (0.0, (2,), (1,)),
    ],
)
def test_views_outside_their_storage_are_refused(
    tmp_path: Path, offset: Any, size: Any, stride: Any
) -> None:
    path = saved(tmp_path, {"x": rebuild(storage(), offset, size, stride)})
    with pytest.raises(ValueError, match=r"cannot be read safely \(a tensor"):
        load_object_npy(path)


def test_a_view_inside_its_storage_is_read(tmp_path: Path) -> None:
    content: Any = load_object_npy(saved(tmp_path, {"x": rebuild(storage(), 1, (2,), (3,))}))
    assert content["x"].tolist() == [0, 0]


def test_storages_that_are_none(tmp_path: Path) -> None:
    whole = storage().call[1][0]
    for end in range(0, len(whole), 7):
        with pytest.raises(ValueError, match="cannot be read safely"):
            load_object_npy(saved(tmp_path, {"x": rebuild(storage(whole[:end]), 0, (6,), (1,))}))
    for other in (whole + b"\0", b"", pickle.dumps({}) * 5, 17, None, {"a": 1}):
        bad = storage(other) if isinstance(other, bytes) and other else other
        with pytest.raises(ValueError, match="cannot be read safely"):
            load_object_npy(saved(tmp_path, {"x": rebuild(bad, 0, (6,), (1,))}))
    bfloat = torch.zeros(2, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="BFloat16Storage, which is not allowed"):
        load_object_npy(saved(tmp_path, {"x": bfloat}))


def test_a_call_hidden_in_a_storage_is_refused_and_not_run(tmp_path: Path) -> None:
    import os

    marker = tmp_path / "ran"
    evil = pickle.dumps(Call(os.system, f"touch '{marker}'"))
    for data in (evil, evil * 5):
        with pytest.raises(ValueError, match=r"(os|posix|nt)\.system, which is not allowed"):
            load_object_npy(saved(tmp_path, {"x": rebuild(storage(data), 0, (6,), (1,))}))
    assert not marker.exists()


def test_pytorch_is_not_imported(tmp_path: Path) -> None:
    path = saved(tmp_path, irn())
    script = (
        "import sys\nfrom adcam.data.formats import read_cam_file\n"
        f"assert read_cam_file({str(path)!r}).maps.class_ids == (3, 14)\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", script], cwd=root).returncode == 0
