"""What a folder of photographs and its labels hold, before anything is written."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from adcam.data.images import ImageError, read_image
from adcam.data.labels import LabelTable
from adcam.errors import AdcamError, join_some
from adcam.files import hash_file
from adcam.progress import track

FEW_IMAGES = 10
"""Fewer images of a class than these are called few."""

IMBALANCE = 10
"""From this many times as many images of one class as of another, they are called unbalanced."""


@dataclass(frozen=True)
class Photographs:
    """The images below a folder.

    Attributes:
        folder: The folder.
        paths: The files of images that can be read, by image id, ids ascending.
        unreadable: Why others cannot be read, by image id.
        copies: Images with the same bytes as an earlier one, which they are mapped to.
    """

    folder: Path
    paths: Mapping[str, Path]
    unreadable: Mapping[str, str]
    copies: Mapping[str, str]


@dataclass(frozen=True)
class Survey:
    """Photographs with their labels, and what a user should know about them.

    Attributes:
        photographs: The images.
        classes: The names of the classes in the order of their numbers, which are 1 to K.
        labels: The class names of each labelled image that can be read, ``()`` for none of them.
        understood: How the labels were read, in words.
        strangers: Ids among the labels that name no image.
    """

    photographs: Photographs
    classes: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]]
    understood: str
    strangers: tuple[str, ...]

    @property
    def unlabelled(self) -> tuple[str, ...]:
        """Images that can be read and have no label, not even an empty one."""
        return tuple(i for i in self.photographs.paths if i not in self.labels)

    @property
    def learnable(self) -> tuple[str, ...]:
        """Images that are learnt from or validated on: labelled, and of copies the first alone."""
        return tuple(i for i in self.labels if i not in self.photographs.copies)

    @property
    def counts(self) -> dict[str, int]:
        """The number of learnable images of each class, in the order of the classes."""
        found = Counter(name for i in self.learnable for name in self.labels[i])
        return {name: found[name] for name in self.classes}

    def describe(self) -> Iterator[str]:
        """Sentences on what a user should know before training."""
        pictures, counts = self.photographs, self.counts
        if pictures.unreadable:
            reasons = join_some([*pictures.unreadable.values()], separator="; ")
            yield f"{_many(pictures.unreadable, 'image')} cannot be read, left out: {reasons}"
        if pictures.copies:
            pairs = [f"{copy} = {first}" for copy, first in pictures.copies.items()]
            yield (
                f"{_many(pairs, 'copy', 'copies')} of other photographs, byte for byte, labelled "
                f"but not learnt from: {join_some(pairs)}"
            )
            yield from self._describe_contradictions()
        if self.strangers:
            of_none = _many(self.strangers, "label")
            yield f"{of_none} of photographs that are not there: {join_some(self.strangers)}"
        if self.unlabelled:
            without = _many(self.unlabelled, "photograph")
            yield f"{without} without a label, left without a mask: {join_some(self.unlabelled)}"
        shown = {name: count for name, count in counts.items() if count}
        if absent := [name for name in counts if name not in shown]:
            yield f"no photograph shows {join_some(absent)}: these classes cannot be learnt"
        if few := [f"{name} ({count})" for name, count in shown.items() if count < FEW_IMAGES]:
            weak = join_some(few)
            yield f"fewer than {FEW_IMAGES} photographs show {weak}: expect weak masks there"
        most, least = (pick(shown, key=shown.__getitem__) for pick in (max, min))
        if shown[most] >= IMBALANCE * shown[least]:
            ratio = shown[most] // shown[least]
            yield f"unbalanced: {most} has {ratio} times as many photographs as {least}"
        if twice := [f"{a} ({shown[a]}) and {b} ({shown[b]})" for a, b in find_inflections(shown)]:
            yield f"perhaps one class in two spellings, learnt as two: {join_some(twice)}"
        if together := list(self._find_inseparable(shown)):
            yield (
                f"always together, so that they cannot be told apart: {join_some(together)}; a "
                "name with a space needs a semicolon in labels (red fox;) or --classes"
            )
        if everywhere := [n for n, count in shown.items() if count == len(self.learnable)]:
            yield (
                f"every photograph shows {join_some(everywhere)}: what is always there cannot be "
                "told from background; add photographs without it"
            )

    def _find_inseparable(self, names: Iterable[str]) -> Iterator[str]:
        """Classes that exactly the same images show."""
        groups: dict[frozenset[str], list[str]] = {}
        for name in names:
            images = frozenset(i for i in self.learnable if name in self.labels[i])
            groups.setdefault(images, []).append(name)
        return (" and ".join(group) for group in groups.values() if len(group) > 1)

    def _describe_contradictions(self) -> Iterator[str]:
        pairs = [
            f"{copy} ({', '.join(self.labels[copy])}) and {first} ({', '.join(self.labels[first])})"
            for copy, first in self.photographs.copies.items()
            if {copy, first} <= self.labels.keys()
            and set(self.labels[copy]) != set(self.labels[first])
        ]
        if pairs:
            yield f"copies of one photograph with different labels: {join_some(pairs)}"


def find_inflections(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of class names of which the second is the first with an ending of plurals.

    Example:
        >>> find_inflections(["Hund", "Hunde", "Katze", "Katzen", "car", "cart"])
        [('Hund', 'Hunde'), ('Katze', 'Katzen')]
    """
    by_spelling = {name.casefold(): name for name in names}
    return [
        (name, by_spelling[spelling + ending])
        for spelling, name in by_spelling.items()
        for ending in ("s", "es", "e", "n", "en")
        if spelling + ending in by_spelling
    ]


def look_at_images(folder: str | Path, found: Mapping[str, Path]) -> Photographs:
    """Decode every image, and find those with the same bytes.

    Raises:
        AdcamError: No image can be read.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looks = pool.map(_look_at, found.values())
        seen = dict(zip(found, track(looks, "reading photographs", len(found)), strict=True))
    unreadable = {i: reason for i, (_, reason) in seen.items() if reason}
    if len(unreadable) == len(found):
        raise AdcamError(
            f"{folder}: none of its {len(found)} images can be read, such as: "
            f"{next(iter(unreadable.values()))}"
        )
    first: dict[str, str] = {}
    copies: dict[str, str] = {}
    for img_id, (digest, reason) in seen.items():
        if not reason and first.setdefault(digest, img_id) != img_id:
            copies[img_id] = first[digest]
    paths = {i: path for i, path in found.items() if i not in unreadable}
    return Photographs(Path(folder), paths, unreadable, copies)


def _look_at(path: Path) -> tuple[str, str]:
    """The hash of a file, and why it cannot be read, if so."""
    try:
        read_image(path)
        return hash_file(path), ""
    except (ImageError, OSError) as error:
        return "", str(error)


def put_together(photographs: Photographs, table: LabelTable, labels: str | Path) -> Survey:
    """Put labels to the photographs.

    A label file may name an image by more or less of its path than the folder has below it; the
    longest end of the name that stands for exactly one photograph counts. Errors call the labels by
    ``labels``, where they come from.

    Raises:
        AdcamError: The labels name no photograph, or no photograph shows a class; or there is
            nothing to tell the only class from.
    """
    known = [*photographs.paths, *photographs.unreadable]
    found = match_ids(table, known)
    placed: dict[str, tuple[str, ...]] = {}
    for name, img_id in found.items():
        if img_id in photographs.paths:
            if img_id in placed and set(placed[img_id]) != set(table[name]):
                raise AdcamError(
                    f"{labels}: two labels stand for the photograph {img_id!r}, and differ; the "
                    f"second is {name!r}"
                )
            placed[img_id] = table[name]
    if not found:
        raise AdcamError(
            f"{labels}: none of its {len(table)} labels names a photograph in "
            f"{photographs.folder}: got {join_some(list(table))}; expected such as "
            f"{join_some(known)}"
        )
    ordered = {i: placed[i] for i in photographs.paths if i in placed}
    strangers = tuple(name for name in table if name not in found)
    survey = Survey(photographs, table.classes, ordered, table.understood, strangers)
    _check_learnable(survey, labels)
    return survey


def match_ids(names: Iterable[str], known: Collection[str]) -> dict[str, str]:
    """The image that each name of a label file stands for; names of no image are left out.

    A name of no image is also read with its percent escapes resolved, which some tools write.

    Example:
        >>> match_ids(["upload/3/a", "c", "x"], ["a", "sub/c", "d"])
        {'upload/3/a': 'a', 'c': 'sub/c'}
        >>> match_ids(["my%20cat"], ["my cat"])
        {'my%20cat': 'my cat'}
    """
    ends: dict[str, list[str]] = {}
    for img_id in known:
        parts = img_id.split("/")
        for start in range(1, len(parts)):
            ends.setdefault("/".join(parts[start:]), []).append(img_id)
    found: dict[str, str] = {}
    there = set(known)
    for name in names:
        spellings = dict.fromkeys((name, unicodedata.normalize("NFC", unquote(name))))
        for parts in (spelling.split("/") for spelling in spellings):
            tails = ("/".join(parts[start:]) for start in range(len(parts)))
            hits = ([tail] if tail in there else ends.get(tail, []) for tail in tails)
            if match := next((hit[0] for hit in hits if len(hit) == 1), None):
                found[name] = match
                break
    return found


def _check_learnable(survey: Survey, labels: str | Path) -> None:
    shown = [name for name, count in survey.counts.items() if count]
    if not shown:
        raise AdcamError(f"{labels}: no photograph shows any class, so there is nothing to learn")
    if len(survey.learnable) < 2:
        raise AdcamError(f"{labels}: one labelled photograph is not enough: one learns, one checks")
    if len(shown) == 1 and survey.counts[shown[0]] == len(survey.learnable):
        raise AdcamError(
            f"{labels}: every photograph shows {shown[0]!r} and nothing else, so that nothing can "
            "be told from it. Add photographs without it, with an empty label; or let an ImageNet "
            f"model look for it: adcam generate {survey.photographs.folder} --model "
            'deit_tiny_patch16_224 --classes "tabby cat" --out out'
        )


def _many(items: Collection[object], what: str, several: str = "") -> str:
    return f"{len(items)} {what if len(items) == 1 else several or what + 's'}"
