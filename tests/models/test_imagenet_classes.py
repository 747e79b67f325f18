"""Class names: every way to say one, groups, and what a mistake is told."""

from __future__ import annotations

import pytest
from timm.data import ImageNetInfo

from adcam.models.imagenet_classes import VOC_TO_IMAGENET, resolve_classes


@pytest.mark.parametrize(
    "text", [281, "281", "n02123045", "tabby", "Tabby  CAT", "tabby_cat", "tabby, tabby cat"]
)
def test_every_way_to_name_one_class(text):
    assert [*resolve_classes([text]).values()] == [(281,)]


def test_an_index_or_wordnet_id_is_shown_by_its_first_lemma_and_a_name_as_it_was_given():
    assert [*resolve_classes(["n02123045", 404, "Siamese cat"])] == [
        *("tabby", "airliner", "Siamese cat")
    ]


def test_a_group_collects_its_parts_once_and_in_order():
    found = resolve_classes(["big cat = tiger|lion|n02128385|tiger"])
    assert found == {"big cat": (288, 291, 292)}


def test_voc_names_stand_for_their_kinds_and_can_be_part_of_a_group():
    assert resolve_classes(["dog", "pet=cat|hamster"]) == {
        "dog": tuple(range(151, 269)),
        "pet": (281, 282, 283, 284, 285, 333),
    }


def test_voc_table_holds_the_edges_of_each_kind():
    names = [text.split(",")[0] for text in ImageNetInfo("imagenet-1k").label_descriptions()]
    edges = {
        "dog": ("Chihuahua", "Mexican hairless"),
        "cat": ("tabby", "Egyptian cat"),
        "bird": ("cock", "albatross"),
        "sheep": ("ram", "bighorn"),
        "boat": ("aircraft carrier", "yawl"),
        "car": ("beach wagon", "sports car"),
        "train": ("bullet train", "steam locomotive"),
        "tvmonitor": ("monitor", "television"),
        "bottle": ("beer bottle", "wine bottle"),
    }
    for voc, (first, last) in edges.items():
        assert (names[VOC_TO_IMAGENET[voc][0]], names[VOC_TO_IMAGENET[voc][-1]]) == (first, last)
    outside = {"sea lion", "timber wolf", "cougar", "ibex", "tailed frog", "ambulance", "streetcar"}
    assert not outside & {names[i] for indices in VOC_TO_IMAGENET.values() for i in indices}


def test_voc_table_is_disjoint_ascending_and_has_no_person():
    flat = [index for indices in VOC_TO_IMAGENET.values() for index in indices]
    assert len(set(flat)) == len(flat)
    assert all(list(indices) == sorted(indices) for indices in VOC_TO_IMAGENET.values())
    assert len(VOC_TO_IMAGENET) == 19
    assert "person" not in VOC_TO_IMAGENET
    # No VOC name is hidden by a lemma.
    assert resolve_classes(list(VOC_TO_IMAGENET)) == VOC_TO_IMAGENET


def test_the_width_of_the_model_tells_which_imagenet_it_knows():
    ((index,),) = resolve_classes(["tabby cat"], num_outputs=21843).values()
    assert ImageNetInfo("imagenet-21k-goog").index_to_label_name(index) == "n02123045"


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "no classes given"),
        ("dog", "list of names"),
        (["crane"], r"several ImageNet classes.*134 \(crane\); 517 \(crane\)"),
        (["terrier"], "close names.*'toy terrier'"),
        (["tiger catt"], "close names.*'tiger cat'"),
        (["zzqxy"], "give a lemma"),
        (["1000"], r"0\.\.999, got 1000"),
        (["-1"], "'-1' is no class"),
        (["n99999999"], "'n99999999' is no class"),
        (["pet="], "empty in part"),
        (["=lion"], "empty in part"),
        (["pet=lion||tiger"], "empty in part"),
        (["cat", "tabby cat"], r"'cat' and 'tabby cat' share.*281 \(tabby, tabby cat\)"),
        (["pet=lion", "pet=tiger"], "given twice"),
    ],
)
def test_mistakes_are_told_with_what_would_be_right(classes, message):
    with pytest.raises(ValueError, match=message):
        resolve_classes(classes)


def test_a_model_of_unknown_classes_takes_indices_only():
    assert resolve_classes(["7"], num_outputs=10) == {"7": (7,)}
    with pytest.raises(ValueError, match="'dog' is no class of this 10-class model"):
        resolve_classes(["dog"], num_outputs=10)
