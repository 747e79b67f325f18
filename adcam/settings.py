"""What configs say: one frozen dataclass a section, checked when it is built.

A config file becomes :class:`Settings` (classifiers, comparisons, recipes) or
:class:`SegmentationSettings` (networks that learn from masks). Unknown keys, wrong types and values
out of range are refused with the key, the value and what is legal. The entries under *Attributes*
are the texts of docs/settings.md.
"""

from __future__ import annotations

import copy
import difflib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, overload

from adcam.errors import AdcamError, naming
from adcam.installation import find_config
from adcam.method_options import DEFAULT_RULES, check_method, known_methods
from adcam.options import (
    Section,
    check_choice,
    check_fields,
    convert,
    from_section,
    setting,
    suggest,
)
from adcam.plain_config import anchor_paths, are_configs_safe, is_toml, read_plain_config

if TYPE_CHECKING:
    from typing_extensions import Self

    from adcam.cams import Method
    from adcam.models.inca import InCA

T = TypeVar("T")
S = TypeVar("S", bound="ConfigSettings")

DTYPES = ("float32", "bfloat16", "float16")
AMP_TYPES = ("none", "bfloat16", "float16")
TASKS = ("segmentation", "localization")
CRF_NAMES = ("none", "toco", "irn", "psa", "clip_es", "weaktr")
CRF_BACKENDS = ("auto", "lattice", "lattice-gpu", "pydensecrf")


@dataclass(frozen=True)
class DataSettings(Section):
    """Where the images, labels and masks are.

    Attributes:
        root: The folder of the data set.
        source: How the folder is laid out: ``"voc"``, ``"coco14"`` (COCO of any year, as
            ``adcam convert coco`` lays it out), ``"folder"``, ``"cub"``, ``"ilsvrc"``, ``"wsol"``,
            or a name given to ``adcam.register_data_source``.
        classes: The names of the classes in the order of their numbers, or ``"voc"``, ``"coco"`` or
            ``"shapes"``. By default VOC's, or those that the data set brings.
        labels: Where image-level labels are read: ``"xml"`` or ``"mask"`` (for VOC), ``"folders"``
            (the names of sub-folders), or a file below ``root``.
        train: The lists of images that are learnt from.
        val: The list of images that is validated on.
        test: The list of images that results are reported on.
        images: The folder of the images of ``source="folder"``, where ``root`` holds no more than
            lists and labels; by default ``root`` itself.
        metadata: The folder of the lists for ``source="wsol"``, below ``root`` or absolute.
        mask_dir: The folder of the true masks below ``root``; by default the source's own.
        expected_counts: How many images each list must have. By default the official numbers of
            CUB and ILSVRC, for other sources nothing; ``{}`` checks nothing.
        masks: The folder of ``adcam generate`` whose masks a network learns from; by default it
            learns from the true masks.
    """

    root: str = setting()
    source: str = setting("voc")
    classes: str | tuple[str, ...] | None = setting(None)
    labels: str = setting("xml")
    train: tuple[str, ...] = setting(())
    val: str | None = setting(None)
    test: str | None = setting(None)
    images: str | None = setting(None)
    metadata: str | None = setting(None)
    mask_dir: str | None = setting(None)
    expected_counts: Mapping[str, int] | None = setting(None)
    masks: str | None = setting(None)


@dataclass(frozen=True)
class TokenCamSettings(Section):
    """A classifier on a vision transformer.

    Attributes:
        backbone: The name of a ViT in timm, or a network given to ``adcam.register_network``.
        kind: ``"token_cam"``, the kind of this section.
        img_size: The side in pixels of the images that the position embedding is made for.
        weights: The file that the backbone starts with, ``"timm"`` to download it, or ``None`` to
            start from random numbers.
        drop_path_rate: The share of residual branches that training skips; more regularises harder.
        backbone_kwargs: Further arguments of timm's ``create_model``.
    """

    backbone: str = setting()
    kind: str = setting("token_cam", choices=("token_cam",))
    img_size: int = setting(224, at_least=1)
    weights: str | None = setting(None)
    drop_path_rate: float = setting(0.0, at_least=0, below=1)
    backbone_kwargs: Mapping[str, Any] = setting({})


@dataclass(frozen=True)
class NonlocalCamSettings(Section):
    """A classifier on a convolutional network with attention blocks.

    Attributes:
        backbone: The name of a VGG, ResNet, InceptionV3 or EfficientNet-Lite in timm.
        kind: ``"nonlocal_cam"``, the kind of this section.
        weights: The file that the backbone starts with, ``"timm"`` to download it, or ``None`` to
            start from random numbers.
        attention: ``"nonlocal"`` blocks, ``"channel"`` means as in ADL, or ``None`` for plain CAM.
        out_stride: How many pixels one place of the class maps stands for.
        frozen_parts: How many of the three parts up to the depths of attention keep the weights and
            batch statistics they begin with; more trains faster and forgets less.
        backbone_kwargs: Further arguments of timm's ``create_model``.
    """

    backbone: str = setting()
    kind: str = setting("nonlocal_cam", choices=("nonlocal_cam",))
    weights: str | None = setting(None)
    attention: str | None = setting("nonlocal", choices=("nonlocal", "channel"))
    out_stride: int = setting(16, at_least=1)
    frozen_parts: int = setting(0, at_least=0, at_most=3)
    backbone_kwargs: Mapping[str, Any] = setting({})


@dataclass(frozen=True)
class OwnSettings(Section):
    """A classifier whose network was added with ``adcam.register_network``.

    Attributes:
        kind: The name of the network.
        options: The options of the network.
    """

    kind: str = setting()
    options: Mapping[str, Any] = setting({})

    @property
    def backbone(self) -> str:
        """What reports call the network."""
        return str(self.options.get("backbone", self.kind))

    @property
    def weights(self) -> str | None:
        """The file that the network starts with, ``None`` for random numbers."""
        return self.options.get("weights")

    @property
    def drop_path_rate(self) -> float:
        """The share of residual branches that training skips."""
        return float(self.options.get("drop_path_rate", 0.0))


@dataclass(frozen=True)
class TrainSettings(Section):
    """How a classifier is trained.

    Attributes:
        epochs: How many times all training images are seen.
        img_size: The side in pixels of the crops that are trained and validated on.
        batch_size: How many images make one step, in each process.
        num_workers: How many processes read images; 0 reads them in the training process.
        min_area: The smallest share of an image that a crop may show; 1 crops nothing by area.
        jitter: How strongly brightness, contrast and saturation are changed; 0 leaves them.
        resize: The side in pixels that images are resized to before a crop of ``img_size``; by
            default crops are resized instead.
        amp: Mixed precision: ``"none"``, ``"bfloat16"`` or ``"float16"`` (on a GPU).
        cls_token_loss: The weight of the loss on the class token's own scores.
        layer_decay: Each block of a vision transformer learns at this share of the rate of the
            block after it. Smaller values keep more of what pre-training taught early blocks; 1
            gives all blocks the same rate.
        seed: The seed of everything random; the same seed gives the same classifier.
        choose: Which epoch is kept: the ``"best"`` on ``data.val``, or the ``"last"``.
        val_interval: How many epochs lie between two validations.
        log_interval: How many steps lie between two lines of the log.
    """

    epochs: int = setting(at_least=1)
    img_size: int = setting(at_least=1)
    batch_size: int = setting(at_least=1)
    num_workers: int = setting(2, at_least=0)
    min_area: float = setting(0.35, above=0, at_most=1)
    jitter: float = setting(0.3, at_least=0)
    resize: int | None = setting(None, at_least=1)
    amp: str = setting("none", choices=AMP_TYPES)
    cls_token_loss: float = setting(0.0, at_least=0)
    layer_decay: float = setting(1.0, above=0, at_most=1)
    seed: int = setting(0, at_least=0)
    choose: str = setting("best", choices=("best", "last"))
    val_interval: int = setting(1, at_least=1)
    log_interval: int = setting(10, at_least=1)


_LARGEST_SIDE = 4096
"""The largest side that a classifier file may ask for."""


@dataclass(frozen=True)
class TestViews(Section):
    """Which versions of an image the network sees.

    Attributes:
        scales: Sides in pixels (:func:`adcam.models.preprocess.compute_input_hw`). More scales
            catch objects of more sizes; time and memory grow with the largest.
        flip: Whether the mirrored image is seen as well, which takes twice the time and makes the
            maps smoother.
        keep_ratio: Whether the aspect ratio is kept to the nearest patch; otherwise images are
            made square.
    """

    __test__: ClassVar[bool] = False  # no test, whatever pytest thinks of the name

    scales: tuple[int, ...] = setting((448,), at_least=1)
    flip: bool = setting(False)
    keep_ratio: bool = setting(True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scales:
            raise AdcamError("scales must hold at least one side in pixels, got none")

    @classmethod
    def from_description(cls, description: Mapping[str, Any] | None, path: object) -> TestViews:
        """Build the views that a classifier file describes, by default one scale of 448 pixels.

        Args:
            description: The attributes; ``None`` where the file says nothing.
            path: The file, for errors.

        Raises:
            AdcamError: The description is damaged, or asks for images beyond 4,096 pixels, which
                would take all memory before anybody sees why.
        """
        if description is None:
            return cls()
        try:
            views = cls(**{**description, "scales": tuple(description["scales"])})
            if (side := max(views.scales)) > _LARGEST_SIDE:
                raise AdcamError(f"images of {side} pixels, above {_LARGEST_SIDE}")
        except (LookupError, TypeError, AdcamError) as error:
            raise AdcamError(
                f"{path}: the views that it names cannot be used: {error}. Name others: --scales, "
                "or views=TestViews((448,)) in Python"
            ) from error
        return views


BOX_VIEWS = TestViews((224,), keep_ratio=False)
"""What the protocols for boxes score: 224 × 224 pixels, the aspect ratio not kept."""


@dataclass(frozen=True)
class CamSettings(Section):
    """How class maps are made.

    Attributes:
        method: The method, a key of :data:`adcam.cams.METHODS`.
        method_options: Options of the method, e.g. ``{"power": 3.0}``.
        scales: Sides in pixels of the images that the network sees. The classifier file that this
            config trains names them, with ``flip`` and ``keep_ratio``, for later commands.
        flip: Whether the mirrored image is seen as well.
        keep_ratio: Whether the aspect ratio of the image is kept.
        dtype: The precision of the network: ``"float32"``, or ``"bfloat16"``/``"float16"``, which
            are faster on a GPU and a little less exact.
        compile: Whether the network's MLPs are compiled, which takes half a minute at the start.
        max_pixels: Larger images are labelled at this many pixels, and their masks enlarged.
    """

    method: str = setting("ad_cam", choices=known_methods)
    method_options: Mapping[str, Any] = setting({})
    scales: tuple[int, ...] = setting((448,), at_least=1)
    flip: bool = setting(False)
    keep_ratio: bool = setting(True)
    dtype: str = setting("float32", choices=DTYPES)
    compile: bool = setting(False)
    max_pixels: int = setting(1 << 22, at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_method(self.method, self.method_options, "method_options")
        _ = self.views  # which checks them

    @property
    def views(self) -> TestViews:
        """Scales, mirroring and aspect ratio together."""
        return TestViews(self.scales, self.flip, self.keep_ratio)


@dataclass(frozen=True)
class MaskSettings(Section):
    """How class maps become masks.

    Attributes:
        rule: Where background ends: ``"constant:0.56"``, ``"steepest:0.56"``, ``"otsu"``, …
            By default ``"steepest:0.56"``, or ``"steepest:0.52"`` for the method ``"refined"``,
            both chosen on this project's own data.
        chosen_on: What ``rule`` was chosen on, for the record.
        two_threshold: A low and a high background score in place of ``rule``: pixels that the two
            disagree on become 255, "uncertain".
        crf: ``"none"``, or the parameter set of a dense CRF: ``"toco"``, ``"psa"``, ``"irn"``, …
        crf_backend: What computes the CRF: ``"lattice"`` (ours, on the CPU), ``"lattice-gpu"``
            (ours, on the GPU of the network), ``"pydensecrf"``, or ``"auto"``: ``"lattice-gpu"``
            where the network runs on a GPU that has kernels for it, else ``"lattice"``.
        label_threshold: The probability from which a class counts as present where no labels are
            given, one for all classes or one a class. A larger value finds fewer classes. By
            default those that the classifier was calibrated to (``adcam calibrate``), or else 0.5.
        at_least_one: Whether the likeliest class counts as present where none reaches its
            threshold: for images that all show a class.
    """

    rule: str | None = setting(None)
    chosen_on: str = setting("given")
    two_threshold: tuple[float, float] | None = setting(None, at_least=0, at_most=1)
    crf: str = setting("none", choices=CRF_NAMES)
    crf_backend: str = setting("auto", choices=CRF_BACKENDS)
    label_threshold: float | tuple[float, ...] | None = setting(None, at_least=0, at_most=1)
    at_least_one: bool = setting(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.two_threshold is not None and self.two_threshold[0] > self.two_threshold[1]:
            raise AdcamError(f"two_threshold must be (low, high), got {self.two_threshold}")


@dataclass(frozen=True)
class RefineSettings(Section):
    """How a classifier is refined on the class maps that it made.

    Attributes:
        thresholds: A low and a high background score. Pixels whose highest score is at most the low
            one are learnt as background, those above the high one as their class; those between
            the two are left out. Further apart, fewer pixels are learnt, and fewer are wrong.
        scale: The side in pixels of the images that the classifier sees, as one of ``cam.scales``.
        max_images: The most images that are learnt from; of more, evenly spread ones are taken.
            Each takes a megabyte on disk while the head is trained (DeiT-Tiny, 448 pixels).
        epochs: How many times all images are seen.
        batch_size: How many images make one step, in each process.
        lr: The learning rate of AdamW; it rises in the first epoch and falls to 0 like a cosine.
        dtype: The precision of the classifier: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        seed: The seed of everything random; the same seed gives the same result.
        num_steps: The diffusion steps of the refined maps. Of images that the head learnt from, it
            knows the maps already, and 0 is best; of others, one step is (method ``refined``).
        rule: Where background ends in the refined maps, as in ``mask.rule``.
        chosen_on: What ``rule`` was chosen on, for the record.
        log_interval: How many steps lie between two lines of the log.
    """

    thresholds: tuple[float, float] = setting((0.5, 0.65), at_least=0, at_most=1)
    scale: int = setting(448, at_least=1)
    max_images: int = setting(4000, at_least=1)
    epochs: int = setting(6, at_least=1)
    batch_size: int = setting(8, at_least=1)
    lr: float = setting(2e-3, above=0)
    dtype: str = setting("float32", choices=DTYPES)
    seed: int = setting(0, at_least=0)
    num_steps: int = setting(0, at_least=0)
    rule: str = setting(DEFAULT_RULES["refined"][0])
    chosen_on: str = setting(DEFAULT_RULES["refined"][1])
    log_interval: int = setting(10, at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.thresholds[0] > self.thresholds[1]:
            raise AdcamError(f"thresholds must be (low, high), got {self.thresholds}")


@dataclass(frozen=True)
class MethodSpec(Section):
    """One method to compare, or one folder of maps.

    Attributes:
        name: The name that tables show.
        method: A key of :data:`adcam.cams.METHODS`; ``""`` where ``score_maps`` are scored.
        options: Options of the method.
        views: Scales and mirroring. A comparison by boxes sees 224 × 224 pixels by default.
        network: A name in ``compare.networks``; ``""`` is the network of the config itself.
        crf: The parameter set of a CRF that refines the masks, or ``"none"``.
        crf_thresholds: The background scores that are tried before a CRF; the best is chosen.
        rule: Where background ends, as in ``mask.rule``, with a CRF or without. By default a
            constant, which is chosen.
        score_maps: A folder of maps in wsolevaluation's format that are scored in place of a
            method's. Such maps are of the true class, so they have no Top-k Loc.
    """

    name: str = setting()
    method: str = setting("")
    options: Mapping[str, Any] = setting({})
    views: TestViews = field(default_factory=TestViews)
    network: str = setting("")
    crf: str = setting("none", choices=CRF_NAMES)
    crf_thresholds: tuple[float, ...] = setting((), at_least=0, at_most=1)
    rule: str = setting("")
    score_maps: str = setting("")

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.method) == bool(self.score_maps):
            raise AdcamError(f"row {self.name!r} must have either a method or score_maps")
        if self.method:
            check_method(self.method, self.options, f"row {self.name!r}")
        if self.rule:
            from adcam.masks.background import parse_rule

            with naming(f"row {self.name!r}"):
                parse_rule(self.rule)
            if self.crf_thresholds:
                raise AdcamError(
                    f"row {self.name!r} has a rule, so that there is no threshold to choose: leave "
                    "crf_thresholds out, or rule"
                )
        elif self.crf != "none" and not self.crf_thresholds:
            raise AdcamError(
                f"row {self.name!r} has a CRF but no crf_thresholds to choose from, and no rule"
            )

    def build(self, **defaults: Any) -> Method:
        """The method with its options, and defaults where it has none of that name."""
        from adcam.cams import build_method

        return build_method(self.method, **{**defaults, **self.options})


@dataclass(frozen=True)
class NetworkEntry(Section):
    """A network of a comparison that is trained from a config.

    Attributes:
        config: The config, relative to the folder of the comparison; by default the comparison
            itself.
        options: Dotted keys and values that change the config, e.g. ``{"train.seed": 1}``.
    """

    config: str | None = setting(None)
    options: Mapping[str, Any] = setting({})


@dataclass(frozen=True)
class CompareSettings(Section):
    """Which methods are compared, and on what.

    Attributes:
        choose_on: The list of images that thresholds are chosen on.
        report_on: The list of images that scores are reported on.
        rows: The methods to compare.
        choose_stride: Every n-th image of ``choose_on`` is used.
        report_stride: Every n-th image of ``report_on`` is used.
        dtype: The precision of the network: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        checkpoint: The classifier that is compared on; by default the one in the work folder, which
            is trained if it is not there. Several files, as a list or by name, are compared on one
            after the other, and the table has mean and spread.
        seeds: The seeds of as many trainings, each as ``train.seed``; every network that is trained
            is trained once for each, and the table has mean and spread.
        reference: The row that others are compared with where there are several classifiers; by
            default the first of AD-CAM, or the first at all.
        networks: Networks by name: a classifier file, a config that is trained, or a section
            ``dict(config=…, options=…)``.
        threshold: The box threshold of GT-known and Top-k Loc; by default the one chosen on
            ``choose_on``.
        score_maps: Whether a comparison by boxes writes all its maps in wsolevaluation's format.
    """

    choose_on: str = setting()
    report_on: str = setting()
    rows: tuple[MethodSpec, ...] = setting()
    choose_stride: int = setting(1, at_least=1)
    report_stride: int = setting(1, at_least=1)
    dtype: str = setting("float32", choices=DTYPES)
    checkpoint: str | tuple[str, ...] | Mapping[str, str] | None = setting(None)
    seeds: tuple[int, ...] = setting((), at_least=0)
    reference: str | None = setting(None)
    networks: Mapping[str, str | NetworkEntry] = setting({})
    threshold: float | None = setting(None, at_least=0, at_most=1)
    score_maps: bool = setting(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [row.name for row in self.rows]
        if not names:
            raise AdcamError("rows must hold at least one method to compare, got none")
        if len(set(names)) != len(names):
            raise AdcamError(f"two rows of compare.rows share a name: {names}")
        if unknown := sorted({row.network for row in self.rows} - {"", *self.networks}):
            raise AdcamError(
                f"compare.networks has no {unknown}; there are {sorted(self.networks)}"
            )
        if self.reference is not None:
            check_choice("compare.reference", self.reference, names)
        self._check_classifiers()

    def _check_classifiers(self) -> None:
        if self.seeds and self.checkpoint is not None:
            raise AdcamError(
                "compare.seeds trains classifiers and compare.checkpoint names trained ones: give "
                "one of them"
            )
        if len(set(self.seeds)) != len(self.seeds):
            raise AdcamError(f"compare.seeds holds a seed twice: {list(self.seeds)}")
        if self.checkpoint is not None and not self.checkpoint:
            raise AdcamError("compare.checkpoint names no file")
        others = sorted({row.name for row in self.rows if row.network})
        if others and not (self.checkpoint is None or isinstance(self.checkpoint, str)):
            raise AdcamError(
                f"several files of compare.checkpoint are of the config's own network, but the "
                f"rows {others} have another; compare.seeds trains every network several times"
            )

    @property
    def reference_row(self) -> str:
        """The name of the row that others are compared with."""
        methods = [row.name for row in self.rows if row.method == "ad_cam"]
        return self.reference or [*methods, self.rows[0].name][0]


@dataclass(frozen=True)
class RecipeNetworkSettings(Section):
    """The network that learns from a recipe's masks.

    Attributes:
        config: The config of the network.
        options: Dotted keys and values that change it.
        from_classifier: Whether the network's backbone starts as the classifier's.
    """

    config: str = setting()
    options: Mapping[str, Any] = setting({})
    from_classifier: bool = setting(False)


@dataclass(frozen=True)
class RecipeSettings(Section):
    """What ``adcam run`` does between the labels and the report.

    Attributes:
        learn_from: The lists of images whose masks teach the network.
        evaluate: The lists of images whose masks are scored.
        test: The list of images that the network is scored on.
        classifier: A classifier that is trained already; by default the recipe trains one.
        refine: Whether the classifier learns from the class maps of ``learn_from``, as the section
            ``refine`` says, before masks are made.
        network: The network that learns from the masks; by default the recipe ends with the masks.
    """

    learn_from: tuple[str, ...] = setting()
    evaluate: tuple[str, ...] = setting()
    test: str | None = setting(None)
    classifier: str | None = setting(None)
    refine: bool = setting(False)
    network: RecipeNetworkSettings | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network is not None and self.test is None:
            raise AdcamError(
                "recipe.test must name the one list that the network is scored on, got None"
            )


@dataclass(frozen=True)
class DemoSettings(Section):
    """The set that ``adcam demo`` generates.

    Attributes:
        num_train: How many images there are to learn from.
        num_val: How many images there are to validate on.
        num_test: How many images there are to report boxes on.
        size_hw: The height and width of an image in pixels.
        seed: The seed of the drawings.
    """

    num_train: int = setting(at_least=1)
    num_val: int = setting(at_least=1)
    num_test: int | None = setting(None, at_least=1)
    size_hw: tuple[int, int] = setting((96, 96), at_least=1)
    seed: int = setting(0, at_least=0)


@dataclass(frozen=True)
class SegTrainSettings(Section):
    """How a segmentation network is trained.

    Attributes:
        max_iters: How many steps are trained.
        batch_size: How many crops make one step, in each process.
        num_workers: How many processes read images; 0 reads them in the training process.
        crop_size: The height and width of the crops in pixels, as in ``train_pipeline``.
        amp: Mixed precision: ``"none"``, ``"bfloat16"`` or ``"float16"`` (on a GPU).
        seed: The seed of everything random; the same seed gives the same network.
        confidence: Whether each pixel counts as much as the maps that made its mask are sure.
        balance: How much more often images of rare classes are drawn, by image-level labels: an
            image counts (f of the commonest class / f of its rarest class) to this power, where f
            is the share of the images that show a class. 0 draws all alike; 0.5 is usual (arXiv
            1908.03195); a larger value favours rare classes more.
        val_interval: How many steps lie between two validations; by default all of them.
        checkpoint_interval: How many steps lie between two checkpoints; by default there is one,
            after the last step.
        log_interval: How many steps lie between two lines of the log.
    """

    max_iters: int = setting(at_least=1)
    batch_size: int = setting(at_least=1)
    crop_size: tuple[int, int] = setting(at_least=1)
    num_workers: int = setting(0, at_least=0)
    amp: str = setting("none", choices=AMP_TYPES)
    seed: int = setting(0, at_least=0)
    confidence: bool = setting(False)
    balance: float = setting(0.0, at_least=0)
    val_interval: int | None = setting(None, at_least=1)
    checkpoint_interval: int | None = setting(None, at_least=1)
    log_interval: int = setting(50, at_least=1)


@dataclass(frozen=True)
class SegTestSettings(Section):
    """What a segmentation network sees and may say in a test.

    Attributes:
        split: The list of images that is scored; by default ``data.val``.
        scales: Factors of the image's size; the probabilities of all of them are averaged.
        flip: Whether each scale is seen mirrored as well.
        short_side: The pixels of the shorter side at scale 1; ``None`` keeps the image's own size.
        crf: The parameter set of a CRF that refines the masks, or ``"none"``.
        labels: ``"given"`` allows only the classes of the image's labels, ``"none"`` all of them.
        min_prob: Pixels whose best class has a lower probability become 255, "uncertain".
    """

    split: str | None = setting(None)
    scales: tuple[float, ...] = setting((1.0,), above=0)
    flip: bool = setting(False)
    short_side: int | None = setting(None, at_least=1)
    crf: str = setting("none", choices=CRF_NAMES)
    labels: str = setting("none", choices=("none", "given"))
    min_prob: float = setting(0.0, at_least=0, at_most=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scales:
            raise AdcamError("scales must hold at least one factor, got none")


@dataclass(frozen=True)
class SelfTrainingSettings(SegTestSettings):
    """How a network's own masks replace those it learnt from; the rest is as in ``test``.

    Attributes:
        labels: ``"given"`` allows only the classes of the image's labels, ``"none"`` all of them.
        rounds: How many times a network is trained; from the second on, on masks of the one before.
    """

    labels: str = setting("given", choices=("none", "given"))
    rounds: int = setting(1, at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split is not None:
            raise AdcamError("split plays no part: masks are made of data.train")


class Entry(Generic[T]):
    """A name at the top of a config: how its value is built, and what holds where it is absent."""

    def __init__(
        self,
        build: Callable[[Any, str], T],
        *,
        kinds: Callable[[], tuple[type, ...]] = tuple,
        default: Callable[[], T] | None = None,
        text: str = "",
    ) -> None:
        self.build = build
        self.kinds = kinds
        """The dataclasses of the section, for docs/settings.md."""
        self.default = default
        self.text = text
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, settings: None, owner: type) -> Self: ...
    @overload
    def __get__(self, settings: ConfigSettings, owner: type) -> T: ...
    def __get__(self, settings: ConfigSettings | None, owner: type) -> T | Self:
        if settings is None:
            return self
        if self.name in settings._built:
            value: T = settings._built[self.name]
            return value
        if self.default is None:
            raise AdcamError(
                f"{settings.filename or 'the config'} has no section {self.name!r}; "
                "`adcam configs` lists examples, `adcam config show NAME` explains their keys"
            )
        return self.default()

    def __set__(self, settings: ConfigSettings, value: Any) -> None:
        raise AttributeError(f"settings cannot be changed; use with_changes({{'{self.name}': …}})")


def _section(kind: type[T], default: Callable[[], T] | None = None) -> Entry[T]:
    return Entry(partial(from_section, kind), kinds=lambda: (kind,), default=default)


def _plain(hint: Any, text: str, default: Any = None, choices: Sequence[str] = ()) -> Entry[Any]:
    def build(value: Any, name: str) -> Any:
        return convert(value, hint, name, {"choices": choices})

    absent = None if default is MISSING else lambda: default
    return Entry(build, default=absent, text=text)


def _build_model(value: Any, where: str) -> TokenCamSettings | NonlocalCamSettings | OwnSettings:
    kind = value.get("kind", "token_cam") if isinstance(value, Mapping) else "token_cam"
    if isinstance(kind, str) and kind in MODEL_KINDS:
        return from_section(MODEL_KINDS[kind], value, where)
    from adcam.models.networks import check_network_options

    options = {name: item for name, item in value.items() if name != "kind"}
    return OwnSettings(kind, check_network_options(kind, options))


MODEL_KINDS: dict[str, type[TokenCamSettings | NonlocalCamSettings]] = {
    "token_cam": TokenCamSettings,
    "nonlocal_cam": NonlocalCamSettings,
}


def _inca_kinds() -> tuple[type, ...]:
    from adcam.models.inca import InCA

    return (InCA,)


def _build_inca(value: Any, where: str) -> InCA | None:
    kind: type[InCA] = _inca_kinds()[0]
    return None if value is None else from_section(kind, value, where)


class ConfigSettings:
    """The values of a config and the sections that were built from them.

    Reading a section that the config lacks, and that has no default, is an :class:`AdcamError`.

    Attributes:
        filename: The file that the config was read from, ``None`` for values made in Python.
    """

    optim_wrapper = _plain(
        Mapping[str, Any], "mmengine's optimizer wrapper: optimizer, rates, clipping.", MISSING
    )
    param_scheduler = _plain(
        tuple[Mapping[str, Any], ...],
        "mmengine's schedulers of the rate; one without an `end` runs to the last step.",
        (),
    )
    default_hooks = _plain(
        Mapping[str, Any] | None, "mmengine's default hooks, merged with those of this project."
    )
    custom_hooks = _plain(
        tuple[Mapping[str, Any], ...],
        "Further hooks of mmengine, which run beside those of this project.",
        (),
    )
    visualizer = _plain(
        Mapping[str, Any] | None,
        "mmengine's visualizer; by default scalars go to a file and to TensorBoard.",
    )
    env_cfg = _plain(
        Mapping[str, Any] | None, "mmengine's environment: cuDNN, processes, distribution."
    )
    custom_imports = _plain(
        Mapping[str, Any] | None, "Modules that mmengine imports before the config is used."
    )

    def __init__(self, values: Mapping[str, Any], filename: str | None = None) -> None:
        """Check the values of a config.

        Args:
            values: All names of the config. Names that are no setting are helpers of the file, but
                one that looks like a misspelt setting is refused.
            filename: The file they were read from.

        Raises:
            AdcamError: A key is unknown, or a value has the wrong type or lies out of range.
        """
        self.filename = filename
        self._values = copy.deepcopy(dict(values))
        entries = self.entries()
        for name in self._values.keys() - entries.keys():
            if near := difflib.get_close_matches(
                name, entries.keys() - self._values.keys(), 1, 0.8
            ):
                raise AdcamError(f"{name!r} is no setting; did you mean {near[0]!r}?")
        self._built: dict[str, Any] = {}
        # In their order: sections that torch has no part in come first.
        for name in (name for name in entries if name in self._values):
            self._built[name] = entries[name].build(self._prepare(name), name)

    @classmethod
    def entries(cls) -> dict[str, Entry[Any]]:
        """All settings at the top of a config by name."""
        found: dict[str, Entry[Any]] = {}
        for kind in reversed(cls.__mro__):
            found |= {name: item for name, item in vars(kind).items() if isinstance(item, Entry)}
        return found

    def __contains__(self, name: str) -> bool:
        return name in self._built

    def to_dict(self) -> dict[str, Any]:
        """A copy of the values as the config gives them, helpers included."""
        return copy.deepcopy(self._values)

    def with_changes(self, changes: Mapping[str, Any]) -> Self:
        """The same settings with other values.

        Args:
            changes: Dotted keys to values, e.g. ``{"train.epochs": 3}``. A mapping is merged with
                the one that is there, or replaces it if it is empty or holds ``_delete_=True``.

        Raises:
            AdcamError: A key is unknown or a value is not legal.
        """
        for key, value in changes.items():
            self._check_key(key)
            self.check_change(key, value)
        from mmengine.config import Config

        merged = Config(self.to_dict())
        try:
            for key, value in changes.items():
                merged.merge_from_dict({key: copy.deepcopy(value)})
                if value == {}:  # which mmengine merges without any effect
                    merged.merge_from_dict({key: {"_delete_": True}})
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise AdcamError(
                f"{dict(changes)} cannot be merged into the config: {error}"
            ) from error
        return type(self)(merged.to_dict(), self.filename)

    def _prepare(self, name: str) -> Any:
        return self._values[name]

    def _check_key(self, key: str) -> None:
        """Refuse a key whose section does not exist; typed sections check their own keys."""
        node: Any = self._values
        first, *rest = key.split(".")
        if first not in (entries := self.entries()):
            raise AdcamError(f"{key}: there is no section {first!r}{suggest(first, entries)}")
        if first not in node:
            return
        node = node[first]
        is_typed = bool(entries[first].kinds())
        for number, section in enumerate(rest, start=1):
            children = _children(node)
            is_last = number == len(rest)
            may_be_new = isinstance(node, Mapping) and (is_last or is_typed)
            if section not in children and not may_be_new:
                place = ".".join([first, *rest[: number - 1]])
                raise AdcamError(f"{key}: {place} has no {section!r}{suggest(section, children)}")
            node = children.get(section, {})

    @classmethod
    def check_change(cls, key: str, value: Any) -> None:
        """Refuse a value of a plain section without building anything, and so without torch.

        Args:
            key: A dotted key, e.g. ``"train.epochs"``; others than of plain sections pass.
            value: The value that it is to have.

        Raises:
            AdcamError: The section has no such key, or the value is not legal.
        """
        name, *rest = key.split(".")
        entry = cls.entries().get(name)
        if entry is None or name not in ("data", "train", "demo") or len(rest) != 1:
            return
        if isinstance(value, Mapping):  # merged with what the config says
            return
        (kind,) = entry.kinds()
        check_fields(kind, {rest[0]: value}, name)


class Settings(ConfigSettings):
    """The settings of a classifier, a comparison or a recipe."""

    task = _plain(
        str,
        "What the classifier is for: masks of several classes an image (`segmentation`), or boxes "
        "of one (`localization`).",
        "segmentation",
        TASKS,
    )
    data = _section(DataSettings)
    model = Entry(_build_model, kinds=lambda: tuple(MODEL_KINDS.values()))
    train = _section(TrainSettings)
    inca: Entry[InCA | None] = Entry(_build_inca, kinds=_inca_kinds, default=lambda: None)
    cam = _section(CamSettings, CamSettings)
    mask = _section(MaskSettings, MaskSettings)
    refine = _section(RefineSettings, RefineSettings)
    compare = _section(CompareSettings)
    recipe = _section(RecipeSettings)
    demo = _section(DemoSettings)
    from_scratch = _plain(
        Mapping[str, Any] | None, "What `adcam demo --from-scratch` changes in the config."
    )

    @property
    def named_views(self) -> TestViews | None:
        """The views of the section ``cam``; ``None`` where it names no part of them."""
        section = self.to_dict().get("cam", {})
        names = {part.name for part in fields(TestViews)}
        return self.cam.views if names.intersection(section) else None

    def _prepare(self, name: str) -> Any:
        value = self._values[name]
        is_boxes = self._values.get("task") == "localization"
        if name != "compare" or not is_boxes or not isinstance(value, Mapping):
            return value
        rows = value.get("rows")
        if not isinstance(rows, list | tuple):
            return value
        views = {"views": BOX_VIEWS}
        return {**value, "rows": [{**views, **r} if isinstance(r, Mapping) else r for r in rows]}


class SegmentationSettings(ConfigSettings):
    """The settings of a segmentation network that learns from masks."""

    data = _section(DataSettings)
    model = _plain(Mapping[str, Any], "The network, as mmsegmentation describes it.", MISSING)
    weights = _plain(
        str | None,
        "What the backbone starts with: a file, `timm`, or `torchvision:NAME`; by default random.",
    )
    train = _section(SegTrainSettings)
    train_pipeline = _plain(
        tuple[Mapping[str, Any], ...], "mmsegmentation's transforms of training images.", MISSING
    )
    test = _section(SegTestSettings, SegTestSettings)
    self_training = _section(SelfTrainingSettings, SelfTrainingSettings)


def _children(node: Any) -> dict[str, Any]:
    """The entries of a section or list by the names that a dotted key gives them."""
    if isinstance(node, list | tuple):
        return {str(index): value for index, value in enumerate(node)}
    return dict(node) if isinstance(node, Mapping) else {}


def load_settings(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    kind: type[S] = Settings,  # type: ignore[assignment]
) -> S:
    """Read an mmengine Python config or a TOML file of plain values, change it, and check it.

    Args:
        path: A file of your own, or the name of a config of this project (see
            :func:`adcam.installation.find_config`). A config is a program: it is executed, unless
            :func:`adcam.plain_config.use_safe_configs` lets only plain values be read.
        overrides: Dotted keys to values, e.g. ``{"train.epochs": 3}``, as ``--cfg-options``.
        kind: :class:`SegmentationSettings` for the config of a network.

    Raises:
        AdcamError: The file is missing or cannot be executed, a key is unknown, or a value is not
            legal.

    Example:
        settings = load_settings("configs/voc12/adcam_deit-small_60e_voc12.py", {"train.seed": 1})
        settings.train.seed
    """
    path = find_config(path)
    with naming(path):
        for key, value in (overrides or {}).items():
            kind.check_change(key, value)
    is_plain = are_configs_safe() or is_toml(path)
    values = read_plain_config(path) if is_plain else _execute(path)
    values = anchor_paths(values, path.parent) if is_toml(path) else values
    with naming(path):
        settings = kind(values, str(path))
        return settings.with_changes(overrides) if overrides else settings


def _execute(path: Path) -> dict[str, Any]:
    from mmengine.config import Config
    from mmengine.logging import MMLogger

    # mmengine logs every environment variable that a config names; people take it for a mistake.
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        return Config.fromfile(str(path)).to_dict()
    # A config is a program of the user: whatever it raises is a mistake in it.
    except (Exception, SystemExit) as error:
        message = f"{path}: cannot be read as a config ({type(error).__name__}: {error})"
        if isinstance(error, FileNotFoundError):
            message += ". Paths in _base_ begin at the folder of the config that names them"
        raise AdcamError(message) from error
    finally:
        logger.setLevel(level)
