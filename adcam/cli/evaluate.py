"""``adcam evaluate``: scores of masks, class maps and score maps."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adcam.cli.arguments import CAM_FORMAT, add_command
from adcam.cli.console import EXIT_OK, log, print_scores, print_table, say_next, show
from adcam.errors import AdcamError, join_some


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "evaluate",
        run,
        "score masks against the ground truth",
        """\
        Score masks (<id>.png) against true masks of the same names: mean IoU and per class IoU,
        precision and recall. With --sweep, score maps of `generate --save-maps` at every
        background score; maps of other projects (<id>.npy) too, see --classes and --format. What
        the rules for a threshold lose that see no masks stands beside it; without --gt, --sweep
        prints their thresholds alone. With
        --metadata, score maps in wsolevaluation's format (<id>.npy) by its
        MaxBoxAccV2, or with --mask-root by its PxAP.""",
        """\
        adcam evaluate out --gt VOC2012/SegmentationClass --ids train.txt --json out.json
        adcam evaluate out --gt VOC2012/SegmentationClass --ids train.txt --sweep
        adcam evaluate out --sweep
        adcam evaluate test_maps --metadata metadata/CUB/test \\
            --choose-maps val_maps --choose-metadata metadata/CUB/val
        """,
    )
    parser.add_argument(
        "pred_dir", type=Path, metavar="PRED_DIR", help="masks, or with --sweep maps"
    )
    ground_truth = parser.add_mutually_exclusive_group()
    ground_truth.add_argument("--gt", type=Path, metavar="GT_DIR", help="true masks")
    ground_truth.add_argument(
        "--metadata",
        type=Path,
        metavar="DIR",
        help="true boxes or masks: a split's metadata folder of wsolevaluation",
    )
    _add_mask_arguments(parser)
    _add_box_arguments(parser)


def _add_mask_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ids", type=Path, metavar="LIST", help="only these ids, one a line")
    parser.add_argument("--sweep", action="store_true", help="threshold curve of stored maps")
    parser.add_argument(
        "--classes",
        default="voc",
        metavar="voc|coco|A,B,...",
        help="classes in the order of their numbers (default: %(default)s)",
    )
    parser.add_argument("--format", **CAM_FORMAT)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument(
        "--num-classes",
        type=int,
        metavar="N",
        help="mask values, background included (default: from config.json, or the highest found)",
    )
    parser.add_argument(
        "--average",
        choices=("union", "gt_present", "per_image"),
        default="union",
        help="classes that enter the mean: those in masks or truth of the set, those in its truth, "
        "or of each image apart (default: %(default)s)",
    )
    parser.add_argument(
        "--pred-ignore",
        choices=("miss", "drop"),
        default="miss",
        help="a predicted 255 is wrong, or is not scored (default: %(default)s)",
    )
    parser.add_argument(
        "--allow-missing", action="store_true", help="score what is there, list what is not"
    )
    parser.add_argument(
        "--values",
        metavar="OLD=NEW,…",
        help="read values of the true masks as others: 255=1 where 255 is the object",
    )
    parser.add_argument(
        "--pred-values", metavar="OLD=NEW,…", help="the same for the predicted masks"
    )


def _add_box_arguments(parser: argparse.ArgumentParser) -> None:
    localization = parser.add_argument_group("localisation", "with --metadata")
    localization.add_argument(
        "--choose-maps",
        type=Path,
        metavar="DIR",
        help="score maps of another split, to choose the thresholds on; default: the best for the "
        'images scored, called "oracle" in the output',
    )
    localization.add_argument(
        "--choose-metadata", type=Path, metavar="DIR", help="metadata folder of that split"
    )
    localization.add_argument(
        "--largest-contour",
        action="store_true",
        help="one box, of the largest contour (MaxBoxAcc), not one a contour (MaxBoxAccV2)",
    )
    localization.add_argument(
        "--mask-root", type=Path, metavar="DIR", help="masks of the metadata: score PxAP"
    )


def run(args: argparse.Namespace) -> int:
    _refuse_unread(args)
    _require_masks(args)
    result, following = _score(args)
    if args.json:
        from adcam.files import write_json

        write_json(args.json, result)
    say_next(following)
    return EXIT_OK


def _score(args: argparse.Namespace) -> tuple[Mapping[str, Any], str]:
    """Print the scores, and return them with what one does next."""
    from adcam.data.open_images import read_id_list
    from adcam.data.png import parse_values
    from adcam.data.sources import parse_classes
    from adcam.evaluation.masks_on_disk import evaluate_maps, evaluate_masks, suggest_thresholds

    if args.metadata is not None:
        return _score_boxes(args), (
            "adcam boxes IMAGES --threshold T writes boxes at a threshold; compare these numbers "
            "with those of wsolevaluation's protocol alone"
        )
    options: dict[str, Any] = {
        "ids": None if args.ids is None else read_id_list(args.ids),
        "progress": True,
    }
    if args.sweep:
        options |= {"class_set": parse_classes(args.classes), "cam_format": args.cam_format}
    if args.gt is None:
        result = suggest_thresholds(args.pred_dir, **options)
        _print_rules(result["rules"])
        log(f"{result['num_images']} maps")
        return result, "adcam generate … --threshold RULE with one of them"
    options |= {
        "average": args.average,
        "values": parse_values(args.values),
        "allow_missing": args.allow_missing,
    }
    if args.sweep:
        result = evaluate_maps(args.pred_dir, args.gt, **options)
        _print_curve(result)
    else:
        result = evaluate_masks(
            args.pred_dir,
            args.gt,
            num_classes=args.num_classes,
            pred_ignore=args.pred_ignore,
            pred_values=parse_values(args.pred_values),
            **options,
        )
        print_scores(result)
    if missing := result["missing_predictions"]:
        log(f"{len(missing)} images without a prediction were left out, such as {missing[0]}")
    return result, _find_next(args)


def _find_next(args: argparse.Namespace) -> str:
    """What one does with scores: of masks, find out whether a threshold would be better."""
    from adcam.labeling.output_folder import CONFIG_NAME, maps_folder, masks_folder

    if args.sweep:
        return "adcam generate … --threshold T with the best one; report it on other images"
    out = masks_folder(args.pred_dir).parent
    if not (out / CONFIG_NAME).is_file():
        return (
            "where class maps became these masks, adcam evaluate MAPS --gt TRUTH --sweep scores "
            "every threshold"
        )
    if maps_folder(out) != out:
        return f"adcam evaluate {out} --gt {args.gt} --sweep scores every threshold"
    return (
        "adcam generate … --save-maps, then adcam evaluate OUT --gt TRUTH --sweep scores every "
        "threshold"
    )


_FOR_MASKS = {"num_classes": None, "pred_ignore": "miss", "pred_values": None}
_FOR_TRUTH = {"average": "union", "values": None, "allow_missing": False}
_FOR_BOXES = {
    "choose_maps": None,
    "choose_metadata": None,
    "largest_contour": False,
    "mask_root": None,
}


def _refuse_unread(args: argparse.Namespace) -> None:
    """Refuse options that would change nothing, so that nobody takes them for heard, or too few."""
    unread: dict[str, Any]
    if args.metadata is not None:  # the order of the branches is that of `_score`
        unread, what = {**_FOR_MASKS, **_FOR_TRUTH, "ids": None, "sweep": False}, "with --metadata"
    elif not args.sweep:
        unread, what = _FOR_BOXES, "without --metadata"
    elif args.gt is None:
        unread, what = {**_FOR_MASKS, **_FOR_TRUTH, **_FOR_BOXES}, "with --sweep and no --gt"
    else:
        unread, what = {**_FOR_MASKS, **_FOR_BOXES}, "with --sweep, whose predictions are maps"
    given = [name for name, default in unread.items() if getattr(args, name) != default]
    if given:
        options = join_some([f"--{name.replace('_', '-')}" for name in given])
        cure = "; image_ids.txt lists the images" if "ids" in given else ""
        raise AdcamError(f"{what}, nothing reads {options}{cure}")
    if args.sweep and args.average == "per_image":
        raise AdcamError("--sweep has no --average per_image; take union or gt_present")
    if not (args.gt or args.metadata or args.sweep):
        raise AdcamError(
            "give the ground truth with --gt GT_DIR or --metadata DIR, or have thresholds "
            "suggested from stored maps alone with --sweep"
        )


def _require_masks(args: argparse.Namespace) -> None:
    """Refuse folders without a single mask before anything heavy is imported."""
    from adcam.files import find_files

    folders = [args.gt, None if args.sweep or args.metadata else args.pred_dir]
    for folder in folders:
        if folder is not None and next(folder.rglob("*.[pP][nN][gG]"), None) is None:
            find_files(folder, ".png")  # which says what there is instead


def _print_rules(rules: Sequence[Mapping[str, Any]]) -> None:
    scored = bool(rules) and "miou" in rules[0]
    rows = [
        (
            rule["rule"],
            f"{rule['threshold']:.2f}",
            *((f"{rule['miou']:.2f}", f"{rule['loss']:.2f}") if scored else ()),
        )
        for rule in rules
    ]
    columns = ("rule", "threshold", *(("mIoU", "loss against the best") if scored else ()))
    print_table(columns, rows, "Thresholds without ground truth")


def _score_boxes(args: argparse.Namespace) -> Mapping[str, Any]:
    from adcam.evaluation.boxes_on_disk import evaluate_boxes, evaluate_pixels

    if args.mask_root is not None:
        if args.choose_maps or args.choose_metadata or args.largest_contour:
            raise AdcamError("PxAP (--mask-root) has no threshold to choose and no contours")
        result = evaluate_pixels(args.pred_dir, args.metadata, args.mask_root, progress=True)
        show(f"PxAP of {result['split']}: {result['px_ap']:.2f} ({result['num_images']} images)")
        return result
    result = evaluate_boxes(
        args.pred_dir,
        args.metadata,
        choose_maps_dir=args.choose_maps,
        choose_metadata_dir=args.choose_metadata,
        multi_contour=not args.largest_contour,
        progress=True,
    )
    _print_box_scores(result)
    return result


def _print_curve(result: Mapping[str, Any]) -> None:
    points = list(zip(result["thresholds"], result["miou"], strict=True))
    best = result["best_threshold"]
    shown = [point for point in points if point[0] == best or round(point[0] * 100) % 5 == 0]
    rows = [(f"{t:.2f}", f"{miou:.2f}", "best" if t == best else "") for t, miou in shown]
    print_table(("threshold", "mIoU", ""), rows, "Threshold curve")
    _print_rules(result["rules"])
    print_scores(result["best"], f"Scores in percent at {best:.2f}")


def _print_box_scores(result: Mapping[str, Any]) -> None:
    rows = [
        (f"IoU {delta}", f"{accuracy:.2f}", f"{result['best_thresholds'][delta]:.3f}")
        for delta, accuracy in result["box_acc"].items()
    ]
    rows.append(("mean", f"{result['max_box_acc_v2']:.2f}", ""))
    title = f"Box accuracy of {result['split']} in percent"
    print_table(("", "box accuracy", "threshold"), rows, title)
    contours = "all contours" if result["policy"]["multi_contour"] else "the largest contour"
    show(
        f"{result['num_images']} images; boxes of {contours}; "
        f"thresholds chosen on: {result['chosen_on']}"
    )
