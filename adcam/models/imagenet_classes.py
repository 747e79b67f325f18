"""From what a user calls a class to the ImageNet classes a classifier knows.

Names are the WordNet lemmas that timm ships (timm/data/imagenet_info.py). Its files are read as
they are, since to import it is to import torch. One class of the user may stand for several of
ImageNet's: "dog" is 118 breeds.
"""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from adcam.errors import AdcamError
from adcam.models.known_names import find_package
from adcam.structures import check_class_order

# Read off the 1,000 classes of ILSVRC 2012, whose order follows the WordNet tree, by the VOC
# annotation guidelines (host.robots.ox.ac.uk/pascal/VOC/voc2007/guidelines.html): domestic dogs and
# cats only, tricycles and unicycles are bicycles, no emergency vehicles among cars, no trams among
# trains, sheep without goats. Indices grow with the list of VOC names; person has no class.
VOC_TO_IMAGENET: Mapping[str, tuple[int, ...]] = {
    "aeroplane": (404, 895),  # airliner, warplane
    "bicycle": (444, 671, 870, 880),  # tandem, mountain bike, tricycle, unicycle
    "bird": (*range(7, 25), *range(80, 101), *range(127, 147)),
    # aircraft carrier, canoe, catamaran, container ship, fireboat, gondola, lifeboat, liner,
    # pirate ship, schooner, speedboat, trimaran, yawl
    "boat": (403, 472, 484, 510, 554, 576, 625, 628, 724, 780, 814, 871, 914),
    "bottle": (440, 720, 737, 898, 907),  # beer, pill, pop, water, wine
    "bus": (654, 779, 874),  # minibus, school bus, trolleybus
    # beach wagon, cab, convertible, jeep, limousine, minivan, Model T, racer, sports car
    "car": (436, 468, 511, 609, 627, 656, 661, 751, 817),
    "cat": tuple(range(281, 286)),
    "chair": (423, 559, 765, 857),  # barber, folding, rocking, throne
    "cow": (345,),  # ox
    "diningtable": (532,),
    "dog": tuple(range(151, 269)),
    "horse": (339,),  # sorrel
    "motorbike": (665, 670),  # moped, motor scooter
    "pottedplant": (738,),  # flowerpot
    "sheep": (348, 349),  # ram, bighorn
    "sofa": (831,),  # studio couch
    "train": (466, 547, 565, 705, 820),  # bullet train, locomotives, freight car, passenger car
    "tvmonitor": (664, 782, 851),  # monitor, CRT screen, television
}
"""VOC class -> indices of the ILSVRC 2012 classes that are kinds of it."""


# Which ImageNet a width belongs to, as timm's infer_imagenet_subset has it.
_SYNSETS: Mapping[int, str] = {
    1000: "imagenet_synsets.txt",
    11221: "imagenet21k_miil_synsets.txt",
    11821: "imagenet12k_synsets.txt",
    21841: "imagenet22k_synsets.txt",
    21842: "imagenet22k_ms_synsets.txt",
    21843: "imagenet21k_goog_synsets.txt",
}


def resolve_classes(
    classes: Sequence[str | int], *, num_outputs: int = 1000
) -> dict[str, tuple[int, ...]]:
    """Find the classifier's outputs for each class a user asks for.

    A class is one of these, without regard to case; underscores count as spaces:

    - an output index, ``281`` or ``"281"``;
    - a WordNet id, ``"n02123045"``;
    - a lemma, ``"tabby"`` or ``"tabby cat"``, or the whole entry ``"tabby, tabby cat"``;
    - for the 1,000 classes of ILSVRC 2012, a VOC class of :data:`VOC_TO_IMAGENET`, ``"dog"``;
    - a group with a name of its own, ``"big cat=lion|tiger|288"``, each part one of the above.

    Args:
        classes: The classes that the user asks for, each by name, index or WordNet id.
        num_outputs: Width of the classifier; it tells which ImageNet the model knows (timm's
            ``infer_imagenet_subset``: 1,000, 11,221, 11,821, 21,841, …). For any other width only
            indices have a meaning.

    Returns:
        From the name of each class in masks and reports, in the order given, to the outputs that
        count as it, ascending, at least one.

    Raises:
        AdcamError: If nothing is asked for, a name is unknown or means several classes (close
            names are listed), an index is out of range, or two classes share an output or a name.
    """
    check_class_order(classes)
    if not classes:
        raise AdcamError("no classes given; name at least one, e.g. 'tabby cat'")
    resolved = [_resolve(str(text), num_outputs) for text in classes]
    owner: dict[int, str] = {}
    for name, indices in resolved:
        for index in indices:
            if index in owner:
                raise AdcamError(
                    f"classes {owner[index]!r} and {name!r} share ImageNet class "
                    f"{_describe(index, num_outputs)}; a pixel belongs to one class only"
                )
            owner[index] = name
    found = dict(resolved)
    if len(found) != len(resolved):
        raise AdcamError(f"a class name is given twice: {[name for name, _ in resolved]}")
    return found


def _resolve(text: str, num_outputs: int) -> tuple[str, tuple[int, ...]]:
    name, equals, members = (part.strip() for part in text.partition("="))
    terms = [term.strip() for term in (members if equals else name).split("|")]
    if not name or not all(terms):
        raise AdcamError(f"class {text!r} is empty in part; write NAME or NAME=PART|PART")
    indices = {index for term in terms for index in _find(term, num_outputs)}
    if not equals and re.fullmatch(r"\d+|n\d{8}", name):
        name = _lemmas(num_outputs).get(min(indices), (name,))[0]
    return name, tuple(sorted(indices))


def _find(term: str, num_outputs: int) -> tuple[int, ...]:
    if term.isdecimal():
        if int(term) >= num_outputs:
            raise AdcamError(f"class index must lie in 0..{num_outputs - 1}, got {term}")
        return (int(term),)
    key = _key(term)
    found = _names(num_outputs).get(key, ())
    if len(found) == 1:
        return found
    if found:
        meanings = "; ".join(_describe(index, num_outputs) for index in found)
        raise AdcamError(f"{term!r} means several ImageNet classes, give the index: {meanings}")
    if num_outputs == 1000 and key in VOC_TO_IMAGENET:
        return VOC_TO_IMAGENET[key]
    close = _close_names(key, num_outputs)
    hint = f"close names: {close}" if close else "give a lemma, a WordNet id or an index"
    raise AdcamError(f"{term!r} is no class of this {num_outputs}-class model; {hint}")


def _close_names(key: str, num_outputs: int) -> list[str]:
    names = list(_names(num_outputs))
    if num_outputs == 1000:
        names += VOC_TO_IMAGENET
    # A word of a longer name is what a user most likely has in mind; then slips of the pen.
    holding = [name for name in names if re.search(rf"\b{re.escape(key)}s?\b", name)]
    similar = difflib.get_close_matches(key, names, n=5)
    return list(dict.fromkeys([*sorted(holding, key=len)[:6], *similar]))[:8]


@cache
def _lemmas(num_outputs: int) -> dict[int, tuple[str, ...]]:
    """Output index -> lemmas; empty where the width belongs to no known ImageNet."""
    synsets = _synsets(num_outputs)
    if not synsets:
        return {}
    lines = (_folder() / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines()
    table = dict(csv.reader(lines, delimiter="\t"))
    return {
        index: tuple(lemma.strip() for lemma in table[synset].split(","))
        for index, synset in enumerate(synsets)
    }


@cache
def _names(num_outputs: int) -> dict[str, tuple[int, ...]]:
    """Lemma, whole entry or WordNet id -> the outputs it may mean."""
    synsets = _synsets(num_outputs)
    meanings: dict[str, set[int]] = {}
    for index, lemmas in _lemmas(num_outputs).items():
        for name in (*lemmas, ", ".join(lemmas), synsets[index]):
            meanings.setdefault(_key(name), set()).add(index)
    return {name: tuple(sorted(indices)) for name, indices in meanings.items()}


@cache
def _synsets(num_outputs: int) -> tuple[str, ...]:
    """The WordNet id of each output; none where the width belongs to no known ImageNet."""
    name = _SYNSETS.get(num_outputs)
    if name is None:
        return ()
    return tuple((_folder() / name).read_text(encoding="utf-8").splitlines())


def _folder() -> Path:
    timm = find_package("timm")
    if timm is None:
        raise AdcamError("timm, which brings the names of ImageNet's classes, is not installed")
    return timm / "data" / "_info"


def _key(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _describe(index: int, num_outputs: int) -> str:
    lemmas = _lemmas(num_outputs).get(index)
    return f"{index} ({', '.join(lemmas)})" if lemmas else str(index)
