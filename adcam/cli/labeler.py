"""From options to a labeler and its images, for the commands that label images."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adcam.cli.arguments import check_weights, parse_pairs
from adcam.cli.console import EXIT_OK, EXIT_SOME_FAILED, log, log_failures
from adcam.errors import AdcamError, join_some
from adcam.progress import printable

if TYPE_CHECKING:
    from adcam.data.dataset import ImageDataset
    from adcam.labeling.labeler import PseudoLabeler
    from adcam.labeling.run import RunResult
    from adcam.settings import TestViews
    from adcam.structures import ClassSet

CRF_NAMES = ("none", "toco", "irn", "psa", "clip_es", "weaktr")
CRF_BACKENDS = ("auto", "lattice", "lattice-gpu", "pydensecrf")

_FEW = 16  # as adcam.labeling.run.INLINE_LIMIT


def add_labeler_arguments(parser: argparse.ArgumentParser, *, nargs: str | None = None) -> None:
    """Add IMAGES, and options of the classifier, the labels and the class maps."""
    add_images_argument(parser, nargs=nargs)
    _add_classifier(parser)
    _add_labels(parser)
    _add_maps(parser)


def add_images_argument(parser: argparse.ArgumentParser, *, nargs: str | None = None) -> None:
    """Add IMAGES, with ``nargs="?"`` where they may be left out."""
    parser.add_argument(
        "images",
        nargs=nargs,
        type=path_or_url,
        metavar="IMAGES",
        help="a folder, a VOC root, a .txt list of image paths, or one image; also .tar archives "
        "and .parquet files (one, a folder, a list, or 'data/*.tar' in quotes), and URLs (s3://…)",
    )


def add_folder_argument(parser: argparse.ArgumentParser) -> None:
    """Add DIR, which `adcam generate` wrote."""
    parser.add_argument(
        "folder",
        type=path_or_url,
        metavar="DIR",
        help="--out of `adcam generate`; of packed results also a URL",
    )


def path_or_url(text: str) -> Path | str:
    """Read an argument that names files of this machine, also by ``file://``, or behind a URL."""
    from adcam.remote_files import to_local

    path = to_local(text)
    return text if path is None else path


def _add_classifier(parser: argparse.ArgumentParser) -> None:
    source = parser.add_argument_group(
        "classifier", "one of your own, or an ImageNet model as it is"
    )
    source.add_argument("--checkpoint", type=Path, metavar="FILE", help="of `adcam train`")
    source.add_argument(
        "--model",
        metavar="NAME",
        help="timm name of an ImageNet ViT; clip:NAME of open_clip, clip:FOLDER of Hugging Face, "
        "whose classes are any texts; transformers:FOLDER, an image classifier of Hugging Face",
    )
    source.add_argument(
        "--classes",
        metavar="A,B,...",
        help="with --model: ImageNet classes to look for; without --labels every image is taken "
        "to show all of them",
    )
    source.add_argument(
        "--weights",
        metavar="FILE",
        help="with --model: its weights (default: timm downloads them)",
    )


def _add_labels(parser: argparse.ArgumentParser) -> None:
    which = parser.add_argument_group("images and labels")
    which.add_argument(
        "--labels",
        metavar="FILE|predicted",
        help="a table of images and their labels (.csv, .json, .xlsx); 'folders' if images lie in "
        "one folder for each class; for a VOC root also .npy, xml or mask; 'predicted': the "
        "classifier decides. Default: VOC's annotations, or labels.csv beside the images",
    )
    which.add_argument(
        "--label-threshold",
        type=float,
        metavar="P",
        help="one probability from which every class is predicted (default: a threshold a class, "
        "which the checkpoint holds since `adcam train` or `adcam calibrate`, or else 0.5)",
    )
    which.add_argument(
        "--at-least-one",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="the likeliest class is predicted where none reaches its threshold",
    )
    which.add_argument("--ids", type=Path, metavar="LIST", help="only these ids, one a line")
    which.add_argument("--voc-split", metavar="SPLIT", help="list of a VOC root, e.g. train")


def _add_maps(parser: argparse.ArgumentParser) -> None:
    maps = parser.add_argument_group("class maps")
    maps.add_argument(
        "--method",
        metavar="NAME",
        help="ad_cam (default), cam, ts_cam, mctformer_form, transcam_form, clip_es_form or, with "
        "a classifier of `adcam refine`, refined",
    )
    maps.add_argument(
        "--method-options", nargs="+", metavar="KEY=VALUE", help="e.g. power=3 num_steps=1"
    )
    add_view_arguments(maps)


def add_view_arguments(maps: argparse._ActionsContainer) -> None:
    """Add scales, mirroring and the aspect ratio; :func:`read_views` reads them."""
    maps.add_argument(
        "--scales",
        type=int,
        nargs="+",
        metavar="PX",
        help="input sides in pixels (default: the config's, else the classifier's, else 448)",
    )
    maps.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="also look at the mirrored image",
    )
    maps.add_argument(
        "--keep-ratio",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="keep the aspect ratio (default), or squash to squares",
    )


def add_run_arguments(group: argparse._ActionsContainer) -> None:
    """Add what concerns a run over many images: device, processes, batches, and what it records.

    :func:`read_run_options` reads them, :func:`report_run` reads ``--json``.
    """
    group.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: a GPU if any)")
    group.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes to label images in; 0: this one alone (default: by the processors there "
        "are). Changes no result",
    )
    group.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="most images of one size that the network sees at once (default: 1, on a GPU 32)",
    )
    group.add_argument(
        "--log-json",
        type=Path,
        metavar="FILE",
        help="add a line of JSON for the start, every image and the end to FILE",
    )
    group.add_argument(
        "--metrics-file",
        type=Path,
        metavar="FILE",
        help="keep the numbers so far in FILE, for Prometheus; one file for each shard",
    )
    group.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="write a trace of all threads and the GPU to FILE (.json or .json.gz), for "
        "https://ui.perfetto.dev: some hundred images are enough",
    )
    group.add_argument(
        "--json", type=Path, metavar="FILE", help="write counts, seconds and shares of time there"
    )


def add_mask_arguments(mask: argparse._ArgumentGroup) -> None:
    """Add what turns maps into masks: background rule and CRF."""
    rules = mask.add_mutually_exclusive_group()
    rules.add_argument(
        "--threshold",
        "--bg",
        metavar="RULE",
        help="where background ends: a score in [0, 1] (larger: more background), "
        "power:A, otsu or steepest:T (default: steepest:0.56; with --method refined "
        "steepest:0.52)",
    )
    rules.add_argument(
        "--two-threshold",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="pixels that two background scores disagree on become 255, e.g. 0.2 0.5",
    )
    mask.add_argument(
        "--crf",
        nargs="?",
        const="toco",
        choices=(*CRF_NAMES, *CRF_BACKENDS),
        metavar="NAME",
        help="sharpen edges with a dense CRF of these parameters: toco (also --crf alone), irn, "
        "psa, clip_es or weaktr; or none (default). The name of a backend means toco on it",
    )
    mask.add_argument(
        "--crf-backend",
        choices=CRF_BACKENDS,
        help="what computes the CRF: ours, on the CPU or the GPU, or the C++ package (default: the "
        "GPU, if the network runs there and Triton works)",
    )
    mask.add_argument(
        "--crf-params", choices=CRF_NAMES[1:], metavar="NAME", help="the same as --crf NAME"
    )


def read_mask_options(args: argparse.Namespace, default_crf: str) -> dict[str, Any]:
    """Read what :func:`add_mask_arguments` added as options of a labeler.

    Args:
        args: The arguments.
        default_crf: The CRF's parameter set where the arguments name none.

    Raises:
        AdcamError: The options of the CRF contradict one another.
    """
    options: dict[str, Any] = {}
    if args.threshold is not None:
        options |= {"rule": args.threshold, "two_threshold": None}
    if args.two_threshold is not None:
        options["two_threshold"] = tuple(args.two_threshold)
    return options | _read_crf_options(args, default_crf)


def _read_crf_options(args: argparse.Namespace, default: str) -> dict[str, str]:
    """Read ``--crf``, which may also name a backend, ``--crf-backend`` and ``--crf-params``."""
    crf, backend, params = args.crf, args.crf_backend, args.crf_params
    if crf in CRF_BACKENDS:
        if backend not in (None, crf):
            raise AdcamError(f"--crf {crf} and --crf-backend {backend} name two backends")
        crf, backend = params or ("toco" if default == "none" else default), crf
    elif params is not None:
        if crf not in (None, "none", params):
            raise AdcamError(f"--crf {crf} and --crf-params {params} name two parameter sets")
        # Without a CRF, its parameters alone ask for none.
        crf = params if (crf or default) != "none" else crf
    options = {"crf": crf, "crf_backend": backend}
    return {name: value for name, value in options.items() if value is not None}


def _find_workers(args: argparse.Namespace, labeler: PseudoLabeler) -> int:
    """Return the number of processes asked for, or the one that suits the machine."""
    from adcam.labeling.run import default_workers
    from adcam.labeling.shards import find_neighbours

    if args.workers is not None:
        return args.workers
    is_placed = getattr(args, "shard", None) == "auto"
    return default_workers(labeler, neighbours=find_neighbours(os.environ)[1] if is_placed else 1)


def read_run_options(args: argparse.Namespace, labeler: PseudoLabeler) -> dict[str, Any]:
    """Read what :func:`add_run_arguments` added as fields of ``RunOptions``.

    The labeler's device decides how many processes suit the machine.
    """
    return {
        "workers": _find_workers(args, labeler),
        "batch_size": args.batch_size,
        "log_json": args.log_json,
        "metrics_file": args.metrics_file,
        "profile": args.profile,
        "log": log,
    }


def start_early(args: argparse.Namespace, module: str) -> None:
    """Let worker processes get ready, and a GPU wake up, while this process loads.

    Args:
        args: The command's arguments.
        module: What the workers load first.
    """
    from adcam.labeling.executor import count_workers, start_ahead

    driver = any(Path(path).exists() for path in ("/dev/nvidiactl", "/proc/driver/nvidia"))
    device = args.device or ("cuda" if driver else "cpu")
    is_small = isinstance(args.images, Path) and _holds_few(args.images)
    if is_small or getattr(args, "shard", None) == "auto":
        return
    workers = args.workers
    if workers is None:
        workers = count_workers(has_gpu=device != "cpu", on_device=True)
    start_ahead(device, workers, module)


def _holds_few(images: Path) -> bool:
    """Tell whether images are so few that they are labelled in this process."""
    from itertools import islice

    if images.is_file():
        return images.suffix.lower() not in (".txt", ".tar", ".parquet")
    if not images.is_dir():
        return False
    first = list(islice(images.iterdir(), _FEW + 1))
    return len(first) <= _FEW and not any(path.is_dir() for path in first)


def choose_device(args: argparse.Namespace) -> str | None:
    """Return ``--device``; with ``--shard auto``, by default the GPU of this process's number."""
    import torch

    from adcam.labeling.shards import find_neighbours

    num_gpus = torch.cuda.device_count()
    if args.device is None and getattr(args, "shard", None) == "auto" and num_gpus > 1:
        return f"cuda:{find_neighbours(os.environ)[0] % num_gpus}"
    device: str | None = args.device
    return device


def report_run(args: argparse.Namespace, result: RunResult, what: str, manifest: Path | str) -> int:
    """Print what became of the images of a run, and return the exit code.

    Args:
        args: The command's arguments; ``--json`` gets the numbers.
        result: What the run did.
        what: What an image gets, such as ``"mask"``.
        manifest: Where all failures are listed.
    """
    if args.json:
        from adcam.files import write_json

        write_json(args.json, result.to_dict())
    if result.failed:
        total = result.ok + result.skipped + len(result.failed)
        log(f"{len(result.failed)} of {total} images have no {what}:")
        failed = {failure.img_id: failure.error for failure in result.failed}
        log_failures(failed, rest=f", see {manifest}")
    if result.no_class:
        shown = printable(join_some(result.no_class, 10))
        log(
            f"In {len(result.no_class)} images the classifier found no class, so that their {what} "
            f"is empty: {shown}\nLower --label-threshold, or name the classes "
            "with --labels FILE.csv; --at-least-one takes the likeliest. "
            f"{manifest} says what each came to."
        )
    if result.ok + len(result.failed):
        log(result.format_times())
    return EXIT_SOME_FAILED if result.failed else EXIT_OK


def check_classifier(args: argparse.Namespace) -> None:
    """Refuse what contradicts itself before anything heavy is imported."""
    if (args.checkpoint is None) == (args.model is None):
        raise AdcamError("give either --checkpoint FILE or --model NAME --classes A,B,…")
    if args.model is not None and not args.classes:
        raise AdcamError('--model needs --classes, e.g. --classes "tabby cat,golden retriever"')
    if args.model is None and (args.classes or args.weights):
        raise AdcamError("--classes and --weights go with --model; a checkpoint has its own")
    if args.model is not None:
        _check_model(args)
    _check_method(args)
    for side in args.scales or ():
        if side < 1:
            raise AdcamError(f"--scales are sides in pixels, at least 1, got {side}")
    if getattr(args, "threshold", None) is not None:
        from adcam.masks.background import parse_rule

        parse_rule(args.threshold)


def _check_model(args: argparse.Namespace) -> None:
    """Refuse an unknown network, and classes that its head does not know."""
    from adcam.models.imagenet_classes import resolve_classes
    from adcam.models.known_names import (
        NO_HEAD,
        check_clip_name,
        check_vit_name,
        find_num_outputs,
    )

    check_weights(args)
    kind, colon, model = args.model.partition(":")
    if colon and kind in ("transformers", "clip"):
        if kind == "transformers" and not Path(model).is_dir():
            raise AdcamError(f"--model {args.model}: there is no folder {model!r}")
        if kind == "clip" and not Path(model).is_dir():
            check_clip_name(model)
        return
    check_vit_name(args.model)
    num_outputs = find_num_outputs(args.model)
    if num_outputs == 0:
        raise AdcamError(f"{args.model!r} {NO_HEAD}")
    if num_outputs is not None:
        resolve_classes(split_names(args.classes), num_outputs=num_outputs)


def split_names(text: str) -> list[str]:
    """The names of a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _check_method(args: argparse.Namespace) -> None:
    """Refuse an unknown method, and options that it does not have."""
    from adcam.method_options import check_method, known_methods
    from adcam.options import check_choice

    if args.method is not None:
        check_choice("--method", args.method, known_methods())
    if args.method_options is not None:
        given = parse_pairs("--method-options", args.method_options)
        if method := args.method or _default_method(getattr(args, "config", None)):
            check_method(method, given, "--method-options")


def _default_method(config: Path | None) -> str | None:
    """The method where the command names none; ``None`` where only the config's code would tell."""
    if config is None:
        return "ad_cam"
    from adcam.plain_config import is_toml, read_plain_config

    section = read_plain_config(config).get("cam", {}) if is_toml(config) else None
    method = section.get("method", "ad_cam") if isinstance(section, dict) else None
    return method if isinstance(method, str) else None


def build_labeler(args: argparse.Namespace, **options: Any) -> PseudoLabeler:
    """Build the labeler of a command's options, which go over the ``options`` given here."""
    from adcam.labeling.labeler import PseudoLabeler

    for name in ("method", "label_threshold", "at_least_one"):
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
    if args.method is not None:
        # Options of the config's method do not fit another one.
        options["method_options"] = {}
    if args.method_options is not None:
        options["method_options"] = parse_pairs("--method-options", args.method_options)
    options["views"] = read_views(args, options.get("views"))
    if args.checkpoint is not None:
        labeler = PseudoLabeler.from_checkpoint(
            args.checkpoint, device=choose_device(args), **options
        )
        if args.labels == "predicted" and options.get("label_threshold") is None:
            _warn_of_other_views(args.checkpoint, labeler)
        return labeler
    names = split_names(args.classes)
    device, (kind, _, model) = choose_device(args), args.model.partition(":")
    if kind == "clip":
        return PseudoLabeler.from_clip(model, names, weights=args.weights, device=device, **options)
    if kind == "transformers":
        return PseudoLabeler.from_transformers(model, names, device=device, **options)
    return PseudoLabeler.from_imagenet(
        args.model, names, weights=args.weights or "timm", device=device, **options
    )


def _warn_of_other_views(checkpoint: Path, labeler: PseudoLabeler) -> None:
    """Say so if the thresholds that a file holds were chosen at other views."""
    from adcam.labeling.classifier_views import read_classifier_views

    views, chosen = labeler.options.views, read_classifier_views(checkpoint)
    if labeler.options.label_threshold is not None and views != chosen:
        log(
            f"the label thresholds of {checkpoint} were chosen at {_describe_views(chosen)}, and "
            f"this run looks at {_describe_views(views)}, where probabilities differ: `adcam "
            "calibrate` chooses thresholds for given views"
        )


def _describe_views(views: TestViews) -> str:
    flip, squash = " with --flip" * views.flip, " with --no-keep-ratio" * (not views.keep_ratio)
    return f"--scales {' '.join(map(str, views.scales))}{flip}{squash}"


def read_views(args: argparse.Namespace, views: TestViews | None = None) -> TestViews:
    """Return the views with those that the arguments name in their place.

    Args:
        args: The arguments.
        views: Those of a config; by default what the classifier file says, if there is one.
    """
    from dataclasses import replace

    from adcam.labeling.classifier_views import read_classifier_views
    from adcam.settings import TestViews

    if views is None and args.checkpoint is not None:
        views = read_classifier_views(args.checkpoint, scales=args.scales)
    given = {name: getattr(args, name) for name in ("scales", "flip", "keep_ratio")}
    changes = {name: value for name, value in given.items() if value is not None}
    return replace(views or TestViews(), **changes)


def open_images_first(args: argparse.Namespace) -> ImageDataset | None:
    """Open IMAGES with the classes of ``--checkpoint``, before torch and the network are loaded.

    A mistake, such as a label that is no class, is then reported at once.

    Returns:
        The images; ``None`` where the classes are those of ``--model``, which it knows alone.
    """
    if args.checkpoint is None:
        return None
    from adcam.models.file_header import read_class_set

    return open_images(args, read_class_set(args.checkpoint))


def open_images(args: argparse.Namespace, class_set: ClassSet) -> ImageDataset:
    """Open IMAGES with their labels, as a data set."""
    from adcam.data.open_images import open_images as load_images
    from adcam.data.open_images import read_id_list

    labels = args.labels or "auto"
    everything = args.labels is None and getattr(args, "model", None) is not None
    images = load_images(
        args.images,
        class_set,
        labels=None if everything or labels == "predicted" else labels,
        ids=None if args.ids is None else read_id_list(args.ids),
        voc_split=args.voc_split,
        leave_out=[args.out] if isinstance(args.out, Path) else [],
    )
    if everything:
        all_ids = range(class_set.num_fg_classes)
        images = images.with_labels({record.img_id: all_ids for record in images.records})
    return images
