"""The report of ``adcam run``: pseudo masks, and the network that learned from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adcam.data.dataset import ImageDataset
from adcam.data.png import read_mask
from adcam.recipe.blocks import (
    Run,
    caution,
    confusion_matrix,
    per_class,
    pick_spread,
    provenance,
    stale_caution,
    time_section,
)
from adcam.recipe.scores import Scores
from adcam.report.figures import display_palette, picture_row
from adcam.report.model import (
    Block,
    Cell,
    Column,
    Curves,
    Differences,
    Headline,
    PictureGrid,
    Report,
    Scatter,
    Section,
    Series,
    Table,
    Text,
)
from adcam.structures import IGNORE_INDEX

_MOST_DOTS = 2000  # of a scatter diagram: more make a page slow and hide each other


@dataclass(frozen=True, eq=False)
class RecipeResults:
    """All that a report says about pseudo masks and the network that learned from them.

    Attributes:
        run: The run.
        data_name: The name of the data set.
        learn_from: The lists whose pseudo masks the network learned from.
        pseudo_masks: The scores of the pseudo masks by list; image labels were given.
        network_masks: The scores of the network; ``None`` if there is none.
        shown: The images that pictures are taken from.
        pseudo_masks_dir: The folder of the pseudo masks.
        network_masks_dir: The folder of the network's masks.
        losses: The steps and losses of the network's training, as they were logged.
        config: The settings of the classifier, the masks and the recipe.
        network: The settings of the network; ``None`` if there is none.
    """

    run: Run
    data_name: str
    learn_from: Sequence[str]
    pseudo_masks: Mapping[str, Scores]
    network_masks: Scores | None
    shown: ImageDataset
    pseudo_masks_dir: Path
    network_masks_dir: Path
    losses: Sequence[tuple[int, float]]
    config: Mapping[str, Any]
    network: Mapping[str, Any] | None

    @property
    def are_labels_given(self) -> bool:
        """Whether the network, too, was given the labels of each image when it was tested."""
        return self.network is not None and self.network["test"].get("labels") == "given"

    @property
    def rival(self) -> Scores | None:
        """The scores of the pseudo masks on the list that the network was tested on."""
        if self.network_masks is None:
            return None
        return self.pseudo_masks.get(self.network_masks.split)

    @property
    def by_maker(self) -> list[tuple[str, Scores]]:
        """Who made masks and what they scored: pseudo masks of each list, then the network."""
        rows = [("pseudo masks", scores) for scores in self.pseudo_masks.values()]
        return rows if self.network_masks is None else [*rows, ("network", self.network_masks)]


def build_recipe_report(results: RecipeResults, explorer: Section | None = None) -> Report:
    """The report of a whole recipe; without a network, that of its pseudo masks.

    Args:
        results: What the stages left.
        explorer: The section in which all images are looked through, if there is one.
    """
    run, (finding, cautions) = results.run, describe_network(results)
    lead: list[Block] = [*stale_caution(run), *cautions, scores_table(results, run.command)]
    if ranking := results.by_maker[-1][1].ranking:
        picks = [ranking[round(q * (len(ranking) - 1))] for q in (0.8, 0.5, 0.2)]
        text = "From good to poor: the images at 80, 50 and 20 % of the list, by mIoU."
        lead.append(_grid(results, list(dict.fromkeys(picks)), text, max_side=320))
    return Report(
        title=run.title,
        subtitle=_subtitle(results),
        summary=[finding],
        headlines=_headlines(results),
        lead=lead,
        sections=[*([explorer] if explorer else []), *_sections(results), time_section(run)],
        provenance=provenance(run),
    )


def build_network_section(results: RecipeResults) -> Section:
    """The network in one section of another report."""
    finding, cautions = describe_network(results)
    blocks: list[Block] = [Text([finding]), *cautions, scores_table(results)]
    if results.network_masks is not None and results.rival is not None:
        blocks += gain_blocks(results, results.network_masks, results.rival)
    return Section("A network that learns from the masks", blocks)


def describe_network(results: RecipeResults) -> tuple[str, list[Text]]:
    """The finding in a sentence, and a caution where the network does not beat the pseudo masks."""
    network, rival = results.network_masks, results.rival
    if network is None:
        scores = results.pseudo_masks.values()
        text = ", ".join(f"{s.miou:.1f} % mIoU on {s.split}" for s in scores)
        return f"Pseudo masks from image labels: {text}.", []
    given = "given" if results.are_labels_given else "not given"
    finding = (
        f"A network that learned from the pseudo masks of {' + '.join(results.learn_from)} reaches "
        f"{network.miou:.1f} % mIoU on {network.split}, where it is {given} the image labels"
    )
    if rival is None:
        return finding + ".", []
    finding += f"; the pseudo masks, for which labels are given, reach {rival.miou:.1f} % there."
    if network.miou > rival.miou:
        return finding, []
    gap = f"The network stays {rival.miou - network.miou:.1f} points below the pseudo masks here."
    return finding, caution(gap)


def scores_table(results: RecipeResults, command: str = "") -> Table:
    """One row for the pseudo masks of each list, and one for the network."""
    rows: list[list[Cell]] = [
        [
            maker,
            scores.split,
            scores.num_images,
            "given" if scores is not results.network_masks or results.are_labels_given else "none",
            scores.miou,
            scores.pixel_accuracy,
            100 * scores.ignored_share,
        ]
        for maker, scores in results.by_maker
    ]
    return Table(
        columns=[
            Column("masks of"),
            Column("list"),
            Column("images"),
            Column("image labels"),
            Column("mIoU", bar_max=100.0),
            Column("pixels correct, %"),
            Column("no answer, %", hint="share of labelled pixels that are 255 in the masks"),
        ],
        rows=rows,
        caption="Mean over classes of the data set's IoU, %; pixels without an answer count as "
        "wrong; pixels that are 255 in the ground truth are not scored.",
        command=command,
    )


def gain_blocks(results: RecipeResults, network: Scores, rival: Scores) -> list[Block]:
    """What the network gains over the pseudo masks: by class, by image and in pictures.

    Args:
        results: What the stages left.
        network: The scores of the network.
        rival: The scores of the pseudo masks on the same list.
    """
    class_set = results.shown.class_set
    gains = sorted(
        (
            (network.iou_per_class[v] - rival.iou_per_class[v], class_set.name_of_value(v))
            for v in (0, *class_set.mask_values)
        ),
        key=lambda gain: -gain[0] if math.isfinite(gain[0]) else math.inf,
    )
    both = [img_id for img_id in network.per_image if img_id in rival.per_image]
    better = sum(network.per_image[i] > rival.per_image[i] for i in both)
    step = -(-len(both) // _MOST_DOTS) or 1
    text = f"The network is better on {better:,} of {len(both):,} images: dots above the diagonal."
    blocks: list[Block] = [
        Text([text]),
        Differences(
            [name for _, name in gains],
            [gain for gain, _ in gains],
            f"network − pseudo masks, IoU on {network.split}, points",
        ),
        Scatter(
            both[::step],
            [rival.per_image[i] for i in both[::step]],
            [network.per_image[i] for i in both[::step]],
            f"pseudo mask, mIoU of an image of {network.split}, %",
            "network, mIoU of the same image, %",
            "" if step == 1 else f"One image of {step} is drawn.",
        ),
    ]
    by_gain = sorted(both, key=lambda i: network.per_image[i] - rival.per_image[i])
    if picks := [*reversed(by_gain[-2:]), *by_gain[:2]] if len(by_gain) >= 4 else by_gain:
        text = "Where it gains most over the pseudo mask, then where it loses most."
        blocks.append(_grid(results, picks, text))
    return blocks


def _sections(results: RecipeResults) -> list[Section]:
    class_set, scores = results.shown.class_set, results.by_maker[-1][1]
    iou = {f"{maker}, {s.split}": s.iou_per_class for maker, s in results.by_maker}
    text = "The pseudo masks of each list, and the network that learned from them."
    by_class: list[Block] = [per_class(class_set, iou, text)]
    if len(results.losses) > 1:
        steps, losses = zip(*results.losses, strict=True)
        series = Series("training loss", steps, losses)
        by_class.append(Curves([series], "step", "loss", "How the network learned."))
    confusions = [
        confusion_matrix(
            class_set,
            s.confusion,
            f"Pixels of the {maker} on {s.split}; those without an answer are left out.",
        )
        for maker, s in results.by_maker
        if s.split == scores.split
    ]
    sections = [Section("By class", by_class), Section("Confusion matrix", confusions)]
    if results.network_masks is not None and results.rival is not None:
        blocks = gain_blocks(results, results.network_masks, results.rival)
        sections.insert(0, Section("Network against pseudo masks", blocks))
    if scores.ranking:
        text = f"The best, the middle and the worst images of {scores.split}, by mIoU."
        grid = _grid(results, pick_spread(scores.ranking, each=2), text)
        sections.append(Section("Best, median, worst", [grid]))
    return sections


def _headlines(results: RecipeResults) -> list[Headline]:
    headlines = [
        Headline(f"pseudo masks, {scores.split}", scores.miou, "% mIoU", "image labels given")
        for scores in list(results.pseudo_masks.values())[:2]
    ]
    network, rival = results.network_masks, results.rival
    if network is not None:
        note = "image labels given" if results.are_labels_given else "no labels"
        headlines.append(Headline(f"network, {network.split}", network.miou, "% mIoU", note))
        if rival is not None:
            text = f"{network.miou - rival.miou:+.1f}".replace("-", "−")
            headlines.append(Headline("network over pseudo masks", text, "points"))
    return headlines


def _subtitle(results: RecipeResults) -> str:
    parts = [
        f"{results.data_name}: learned from {' + '.join(results.learn_from)}",
        f"classifier {results.config['model']['backbone']}",
    ]
    if results.network is not None:
        model = results.network["model"]
        head = model["decode_head"]
        head = head[-1] if isinstance(head, list) else head
        parts.append(f"network {head['type']} on {model['backbone']['type']}")
    return "; ".join(parts)


def _grid(
    results: RecipeResults, img_ids: Sequence[str], text: str, *, max_side: int = 256
) -> PictureGrid:
    """Photograph, ground truth, pseudo mask and the network's mask, with each image's mIoU."""
    images, class_set = results.shown, results.shown.class_set
    sources = {
        "pseudo mask": (results.pseudo_masks.get(images.split), results.pseudo_masks_dir),
        "network": (results.network_masks, results.network_masks_dir),
    }
    scored = {name: (scores, d) for name, (scores, d) in sources.items() if scores is not None}
    rows, shown, palette = [], np.zeros(256, dtype=bool), display_palette(class_set)
    for img_id in img_ids:
        sample = images[images.index_of(img_id)]
        masks = {name: read_mask(f / f"{img_id}.png") for name, (_, f) in scored.items()}
        values = {name: s.per_image.get(img_id, math.nan) for name, (s, _) in scored.items()}
        for mask in (sample.mask, *masks.values()):
            if mask is not None:
                shown[np.unique(mask)] = True
        labels = [class_set.classes[i] for i in sample.class_ids or ()]
        row = picture_row(
            img_id,
            sample.img,
            score_maps={},
            palette=palette,
            labels=labels,
            gt=sample.mask,
            masks=masks,
            values=values,
        )
        rows.append(row)
    return PictureGrid(
        rows,
        text,
        [
            (class_set.name_of_value(value), palette[value])
            for value in class_set.mask_values
            if shown[value]
        ],
        heat_scale=False,
        value_name="mIoU, %",
        max_side=max_side,
        shows_ignored=bool(shown[IGNORE_INDEX]),
    )
