"""SBD's class files: what they hold, and files that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from miniatures import SBD_TRAIN, SBD_VAL, TRAIN_AUG, VOC_TRAIN, VOC_VAL, sbd_mask, write_mat
from scipy.io import savemat

from adcam.data.sbd import compute_train_aug, is_checksummed, read_sbd_mask


def test_the_mask_of_a_class_file(tmp_path: Path) -> None:
    path = tmp_path / "2008_000008.mat"
    write_mat(path, sbd_mask("2008_000008"))
    mask = read_sbd_mask(path)
    assert mask.dtype == np.uint8 and mask.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(mask, sbd_mask("2008_000008"))


def test_train_aug_is_all_but_val_of_voc() -> None:
    assert compute_train_aug((*SBD_VAL, *SBD_TRAIN), VOC_TRAIN, VOC_VAL) == list(TRAIN_AUG)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"", "cannot be read as a MATLAB file"),
        (b"not a mat file " * 40, "cannot be read as a MATLAB file"),
        ({"GTinst": {"Segmentation": np.zeros((2, 3), np.uint8)}}, "no mask GTcls.Segmentation"),
        ({"GTcls": {"Boundaries": np.zeros((2, 3), np.uint8)}}, "no mask GTcls.Segmentation"),
        ({"GTcls": np.zeros((2, 3), np.uint8)}, "no mask GTcls.Segmentation"),
        ({"GTcls": {"Segmentation": np.full((2, 3), 21, np.uint8)}}, r"0\.\.20, got 21\.\.21"),
        ({"GTcls": {"Segmentation": np.full((2, 3), -1, np.int16)}}, r"0\.\.20, got -1\.\.-1"),
        ({"GTcls": {"Segmentation": np.full((2, 3), 0.5)}}, "whole numbers"),
        ({"GTcls": {"Segmentation": np.zeros((2, 3, 2), np.uint8)}}, r"\(H, W\), got uint8"),
    ],
)
def test_refusals_name_the_file(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "x.mat"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        savemat(path, content)
    with pytest.raises(ValueError, match=rf"x\.mat: .*{message}"):
        read_sbd_mask(path)


def test_a_file_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    write_mat(path, sbd_mask("2008_000008"))
    whole = path.read_bytes()
    for end in range(0, len(whole), 13):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"x\.mat: "):
            read_sbd_mask(path)


def test_a_flipped_byte_breaks_the_checksum(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    write_mat(path, sbd_mask("2008_000008"))
    whole = path.read_bytes()
    assert is_checksummed(path)
    for position in range(130, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 0x40
        path.write_bytes(damaged)
        assert not is_checksummed(path), position
    path.write_bytes(whole[:-1])
    assert not is_checksummed(path)
    savemat(path, {"GTcls": {"Segmentation": sbd_mask("2008_000008")}})
    assert not is_checksummed(path) and not is_checksummed(tmp_path / "none.mat")
