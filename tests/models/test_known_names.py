"""Names of timm and open_clip that are checked without loading either."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
from timm.data import ImageNetInfo
from timm.data.imagenet_info import infer_imagenet_subset
from timm.models import _registry as registry

from adcam.errors import AdcamError
from adcam.models import known_names
from adcam.models.imagenet_classes import _SYNSETS, resolve_classes
from adcam.models.known_names import (
    check_clip_name,
    check_timm_name,
    check_vit_name,
    find_num_outputs,
    read_timm_names,
)


@pytest.fixture
def not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a command that has loaded neither package."""
    spec = known_names.find_spec
    found = {name: spec(name) for name in ("timm", "open_clip")}
    monkeypatch.setattr(known_names, "find_spec", found.get)
    for name in found:
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_the_files_of_timm_hold_the_names_that_it_registers():
    names = read_timm_names()
    assert names is not None
    assert set(names.files) - {"shapes_vit"} == set(registry._model_entrypoints) - {"shapes_vit"}
    assert names.old == set(registry._deprecated_models)
    assert {
        name for name in names.files if names.files[name] == "deit" and name not in names.old
    } == set(timm.list_models(module="deit"))


def test_the_files_of_timm_hold_the_widths_of_its_heads():
    names = read_timm_names()
    assert names is not None
    known = {}
    for name in names.num_outputs:
        config = timm.get_pretrained_cfg(name)
        known[name] = config.num_classes
    assert len(known) > 300
    assert dict(names.num_outputs) == known
    # What is not in the files: CLIPs that timm derives from others, none with ImageNet's classes.
    for name in timm.list_models(module="vision_transformer"):
        config = timm.get_pretrained_cfg(name)
        if find_num_outputs(name) is None and config is not None:
            assert config.num_classes not in _SYNSETS


def test_the_names_of_imagenets_classes_are_those_of_timm():
    for width in _SYNSETS:
        info = ImageNetInfo(infer_imagenet_subset({"num_classes": width}))
        assert info.num_classes() == width
        for index in (0, width // 2, width - 1):
            synset = info.index_to_label_name(index)
            name = info.index_to_description(index).split(",")[0].strip()
            assert resolve_classes([synset], num_outputs=width) == {name: (index,)}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deit_tiny_patch16_244", "unknown.*names like it: deit_tiny_patch16_224"),
        ("DeiT-small", "unknown.*deit_small_patch16_224"),
        ("resnet50", "'resnet50' is no plain ViT of timm, whose attention can be read; e.g. deit_"),
        ("eva02_base_patch14_224", "no plain ViT"),
        ("qqq", "unknown timm model 'qqq'; e.g. deit_tiny_patch16_224"),
        ("", "unknown timm model ''; e.g."),
    ],
)
@pytest.mark.usefixtures("not_loaded")
def test_networks_that_cannot_be_trained_are_refused_with_names_like_theirs(name, message):
    with pytest.raises(AdcamError, match=message):
        check_vit_name(name)


@pytest.mark.usefixtures("not_loaded")
def test_legal_names_pass():
    for name in (
        "deit_tiny_patch16_224",
        "vit_base_patch16_224.augreg_in21k",
        "vit_base_patch16_224_in21k",  # an old name
        "vit_base_r50_s16_384",
        "shapes_vit",
    ):
        check_vit_name(name)
    check_timm_name("resnet50.a1_in1k")
    with pytest.raises(AdcamError, match="names like it: resnet50"):
        check_timm_name("resnet5O")


@pytest.mark.usefixtures("not_loaded")
def test_without_files_to_read_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(known_names, "find_spec", lambda _name: None)
    monkeypatch.setattr(known_names, "read_timm_names", read_timm_names.__wrapped__)
    for check in (check_vit_name, check_timm_name, check_clip_name):
        check("a_name_of_the_future")
    assert find_num_outputs("a_name_of_the_future") is None


@pytest.mark.usefixtures("not_loaded")
def test_names_of_open_clip_are_read_from_its_files():
    if known_names.find_package("open_clip") is None:
        pytest.skip("open_clip is not installed (`clip`)")
    check_clip_name("ViT-B-16-quickgelu")
    with pytest.raises(AdcamError, match=r"neither a folder .* names like it: ViT-B-16"):
        check_clip_name("vit-b-16")


def test_a_registered_network_is_known(monkeypatch):
    monkeypatch.setitem(registry._model_entrypoints, "my_vit", lambda **_: None)
    check_vit_name("my_vit")


def test_names_are_checked_without_torch():
    code = (
        "import sys\n"
        "from adcam.models.known_names import check_vit_name\n"
        "from adcam.models.imagenet_classes import resolve_classes\n"
        "check_vit_name('deit_tiny_patch16_224'); resolve_classes(['tabby cat'])\n"
        "print({'torch', 'timm', 'numpy'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
