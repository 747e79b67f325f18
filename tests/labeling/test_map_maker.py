"""TestViews of one image, scores and maps, with a network that shows what it was given."""

from __future__ import annotations

import pickle
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adcam.cams import Method, build_method
from adcam.cams.fuse import fuse_maps
from adcam.cams.normalize import min_max
from adcam.errors import AdcamError
from adcam.labeling.map_maker import MapMaker, Network, Passes, round_weights
from adcam.models.preprocess import to_inputs
from adcam.models.token_cam import TokenCAM
from adcam.settings import TestViews
from adcam.structures import ClassMaps, TokenMaps


@dataclass
class Mirror:
    """A network whose class maps are the means of the image's channels over its patches."""

    name: str = "mirror"
    patch_size: tuple[int, int] = (4, 4)
    depth: int = 2
    pixel_stats: tuple[tuple[float, ...], tuple[float, ...]] = ((0.0,) * 3, (1.0,) * 3)
    seen: list[Tensor] = field(default_factory=list)
    asked: list[tuple[tuple[int, ...], ...]] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)

    def token_maps(
        self, inputs: Tensor, *, layer_sets: Sequence[tuple[int, ...]] = ()
    ) -> TokenMaps:
        self.seen.append(inputs)
        self.asked.append(tuple(layer_sets))
        self.threads.add(torch.get_num_threads())
        cam = torch.nn.functional.avg_pool2d(inputs, self.patch_size)
        return TokenMaps(cam.mean(dim=(2, 3)), cam, (cam.shape[2], cam.shape[3]), self.depth)


@dataclass(frozen=True)
class Reads:
    """A method that reads the attention of given blocks and returns the class maps as they are."""

    sets: tuple[tuple[int, ...], ...]

    def layer_sets(self, depth: int) -> tuple[tuple[int, ...], ...]:
        return self.sets

    def __call__(self, maps: TokenMaps, class_ids: Tensor) -> Tensor:
        return maps.cam[:, :1]


def run(network: Network, img: np.ndarray, views: TestViews, *sets: tuple[int, ...]) -> Passes:
    return MapMaker(network, [Reads(sets)], views=views, device="cpu").run([img])


def compute(
    passes: Passes, class_ids: Sequence[int], method: Method, hw: tuple[int, int], **views: bool
) -> ClassMaps:
    maker = MapMaker(Mirror(), [method], views=TestViews((31,), **views), device="cpu")
    return maker.compute_maps(passes, [class_ids], [make_img(*hw)])[0]


def make_img(height: int = 24, width: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_every_scale_in_its_own_batch_with_the_mirrored_image_second() -> None:
    network, img = Mirror(), make_img(30, 60)
    passes = run(network, img, TestViews((16, 32), flip=True), (1,)).token_maps
    assert [tuple(x.shape) for x in network.seen] == [(2, 3, 12, 24), (2, 3, 24, 44)]
    assert network.asked == [((1,),), ((1,),)]
    for inputs, maps in zip(network.seen, passes, strict=True):
        assert torch.equal(inputs[1], inputs[0].flip(-1))
        hw = (inputs.shape[2], inputs.shape[3])
        assert torch.equal(inputs[0], to_inputs(img, hw, mean=(0,) * 3, std=(1,) * 3))
        assert maps.grid_hw == (hw[0] // 4, hw[1] // 4)


def test_squares_and_the_networks_own_statistics() -> None:
    network = Mirror(pixel_stats=((0.5, 0.4, 0.3), (0.1, 0.2, 0.3)))
    img = make_img(30, 60)
    run(network, img, TestViews((16,), keep_ratio=False))
    expected = to_inputs(img, (16, 16), mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    assert torch.equal(network.seen[0], expected[None])


def test_no_gradients_are_kept() -> None:
    network = TokenCAM(
        "vit_tiny_patch16_224",
        num_fg_classes=2,
        img_size=32,
        backbone_kwargs={"embed_dim": 24, "depth": 2, "num_heads": 3},
    ).eval()
    (maps,) = run(network, make_img(), TestViews((32,)), (0,)).token_maps
    assert not maps.cam.requires_grad
    assert not maps.attn_patch2patch[(0,)].requires_grad


def test_autocast_gives_float32_close_to_full_precision() -> None:
    torch.manual_seed(0)
    network = TokenCAM(
        "vit_tiny_patch16_224",
        num_fg_classes=2,
        img_size=32,
        backbone_kwargs={"embed_dim": 24, "depth": 2, "num_heads": 3},
    ).eval()
    img = make_img()
    (full,) = run(network, img, TestViews((32,)), (0, 1)).token_maps
    maker = MapMaker(
        network,
        [Reads(((0, 1),))],
        views=TestViews((32,)),
        device="cpu",
        dtype=torch.bfloat16,
    )
    (half,) = maker.run([img]).token_maps
    assert half.cam.dtype == torch.float32
    assert not torch.equal(half.cam, full.cam)
    torch.testing.assert_close(half.cam, full.cam, rtol=0.05, atol=0.05)


def test_scores_are_the_sigmoid_of_the_mean_logit() -> None:
    logits = torch.tensor([[[1.0, -2.0], [3.0, 0.0]], [[2.0, 4.0], [0.0, -2.0]]])
    passes = [TokenMaps(x, torch.zeros(2, 2, 1, 1), (1, 1), 1) for x in logits]
    expected = 1 / (1 + np.exp(-np.array([1.5, 0.0])))
    (scores,) = Passes(tuple(passes), 1).compute_scores()
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert scores.dtype == np.float32


def test_maps_of_asked_classes_ascending_and_once() -> None:
    network, img = Mirror(), make_img()
    passes = run(network, img, TestViews((31,)))
    maps = compute(passes, [2, 0, 2], build_method("cam", rival_weight=0.0), (24, 40))
    assert maps.class_ids == (0, 2)
    assert maps.score_maps.shape == (2, 24, 40)
    assert maps.score_maps.dtype == np.float32
    for k, c in enumerate((0, 2)):
        alone = compute(passes, [c], build_method("cam"), (24, 40))
        assert np.array_equal(alone.score_maps[0], maps.score_maps[k])
    assert maps.score_maps.min() == 0
    assert maps.score_maps.max() == 1


def test_no_class_gives_no_map_of_the_right_size() -> None:
    passes = run(Mirror(), make_img(), TestViews((31,)))
    maps = compute(passes, (), build_method("cam"), (24, 40))
    assert maps.class_ids == ()
    assert maps.score_maps.shape == (0, 24, 40)
    assert maps.score_maps.dtype == np.float32


def test_a_class_the_network_does_not_have() -> None:
    passes = run(Mirror(), make_img(), TestViews((31,)))
    with pytest.raises(ValueError, match=r"0\.\.2"):
        compute(passes, (3,), build_method("cam"), (24, 40))


def test_the_mirrored_view_of_a_symmetric_network_changes_nothing() -> None:
    """Patches of 4 divide 24×40, so the mirrored pass is the mirror of the plain one."""
    img = make_img()
    maps = {}
    for flip in (False, True):
        passes = run(Mirror(), img, TestViews((31,), flip=flip))
        assert passes.token_maps[0].grid_hw == (6, 10)
        maps[flip] = compute(passes, (1,), build_method("cam"), (24, 40), flip=flip).score_maps
    np.testing.assert_allclose(maps[True], maps[False], rtol=0, atol=1e-6)


def test_scales_are_fused_with_equal_weight() -> None:
    img = make_img()
    passes = run(Mirror(), img, TestViews((16, 31, 62)))
    method = build_method("cam", rival_weight=0.0)
    got = compute(passes, (0, 1), method, (24, 40)).score_maps
    single = [fuse_maps([p.cam[:, :2]], (24, 40)) for p in passes.token_maps]
    # Not just the mean of finished maps: each is scaled on its grid, before it is resized.
    scaled = [min_max(p.cam[:, :2]) for p in passes.token_maps]
    resized = [
        torch.nn.functional.interpolate(s, size=(24, 40), mode="bilinear")[0] for s in scaled
    ]
    np.testing.assert_allclose(got, min_max(sum(resized) / 3).numpy(), rtol=0, atol=1e-6)  # type: ignore[arg-type]
    assert all(np.abs(got - s.numpy()).max() > 0.05 for s in single)


@pytest.mark.parametrize("scales", [(), (0,), (224, -1)])
def test_illegal_scales(scales: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"scales.* must (hold at least one side|be at least 1)"):
        TestViews(scales)


def test_a_scale_below_the_patch() -> None:
    with pytest.raises(ValueError, match="at least one patch"):
        run(Mirror(), make_img(), TestViews((3,)))


@pytest.mark.parametrize("flip", [False, True])
def test_images_of_a_batch_do_not_mix(flip: bool) -> None:
    network, views = Mirror(), TestViews((16, 32), flip=flip)
    imgs = [make_img(24, 40, seed) for seed in range(3)]
    present = [(2,), (), (0, 1)]
    maker = MapMaker(network, [build_method("cam")], views=views, device="cpu")
    passes = maker.run(imgs)
    assert [len(maps.cam) for maps in passes.token_maps] == [6 if flip else 3] * 2
    scores = passes.compute_scores()
    maps = maker.compute_maps(passes, present, [*imgs[:2], make_img(12, 20)])
    assert maps[1].class_ids == () and maps[1].score_maps.shape == (0, 24, 40)
    for i, hw in ((0, (24, 40)), (2, (12, 20))):
        alone = maker.run([imgs[i]])
        (expected,) = maker.compute_maps(alone, [present[i]], [imgs[i]], map_hw=hw)
        assert maps[i].class_ids == expected.class_ids == present[i]
        np.testing.assert_allclose(maps[i].score_maps, expected.score_maps, atol=1e-6)
        np.testing.assert_allclose(scores[i], alone.compute_scores()[0], rtol=1e-6)


def test_a_batch_without_any_class() -> None:
    maker = MapMaker(Mirror(), [build_method("cam")], views=TestViews((16,)), device="cpu")
    passes = maker.run([make_img()] * 2)
    maps = maker.compute_maps(passes, [(), ()], [make_img(), make_img(8, 9)])
    assert [m.score_maps.shape for m in maps] == [(0, 24, 40), (0, 8, 9)]
    (maps, _) = maker.compute_maps(passes, [(0,), ()], [make_img()] * 2, map_hw=(5, 7))
    assert maps.score_maps.shape == (1, 5, 7)


def test_methods_share_the_passes_and_give_what_each_gives_alone() -> None:
    torch.manual_seed(0)
    network = TokenCAM(
        "vit_tiny_patch16_224",
        num_fg_classes=3,
        img_size=32,
        backbone_kwargs={"embed_dim": 24, "depth": 3, "num_heads": 3},
    )
    methods = [build_method(name) for name in ("cam", "ts_cam", "clip_es_form", "ad_cam")]
    views, imgs = TestViews((48, 64), flip=True), [make_img(seed=seed) for seed in range(2)]
    maker = MapMaker(network, methods, views=views, device="cpu")
    assert not network.training
    passes = maker.run(imgs)
    assert (passes.num_images, len(passes.token_maps)) == (2, 2)
    class_ids = [(2, 0), (1,)]
    for method in methods:
        maps = maker.compute_maps(passes, class_ids, imgs, method=method)
        alone = MapMaker(network, [method], views=views, device="cpu")
        expected = alone.compute_maps(alone.run(imgs), class_ids, imgs)
        assert [m.class_ids for m in maps] == [(0, 2), (1,)]
        for one, other in zip(maps, expected, strict=True):
            # Sums over blocks that several methods read are added up in another order.
            np.testing.assert_allclose(one.score_maps, other.score_maps, atol=1e-5)
    assert passes.compute_scores().shape == (2, 3)
    np.testing.assert_allclose(
        passes.compute_scores()[1], maker.run([imgs[1]]).compute_scores()[0], rtol=1e-6
    )


def test_the_network_on_the_cpu_computes_with_one_thread() -> None:
    network = Mirror()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        MapMaker(network, [build_method("cam")], views=TestViews((16,)), device="cpu").run(
            [make_img()]
        )
        assert network.threads == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_batch_of_different_sizes_is_refused() -> None:
    maker = MapMaker(Mirror(), [build_method("cam")], views=TestViews((16,)), device="cpu")
    for imgs in ([make_img(24, 40), make_img(40, 24)], []):
        with pytest.raises(AdcamError, match="equal input sizes"):
            maker.run(imgs)


def test_rounded_weights_give_what_autocast_gives() -> None:
    torch.manual_seed(0)
    network = TokenCAM(
        "vit_tiny_patch16_224", num_fg_classes=3, img_size=64, backbone_kwargs={"depth": 2}
    ).eval()
    rounded = round_weights(network, torch.bfloat16)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert isinstance(rounded, TokenCAM) and rounded.head.weight.dtype == torch.bfloat16
    method = build_method("ad_cam", layers="all", cls_layers="all")
    makers = [MapMaker(x, [method], dtype=torch.bfloat16, device="cpu") for x in (network, rounded)]
    img = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    one, other = (maker.run([img]).token_maps[0] for maker in makers)
    assert torch.equal(one.cam, other.cam) and torch.equal(one.logits, other.logits)
    assert one.attn_cls2patch is not None and other.attn_cls2patch is not None
    assert torch.equal(one.attn_cls2patch, other.attn_cls2patch)
    mirror = Mirror()
    assert round_weights(mirror, torch.bfloat16) is mirror


def test_makers_of_one_network_take_turns() -> None:
    """Or the hooks of a pass, through which attention is read, would meet those of another."""
    running: list[int] = []
    most: list[int] = []

    class Slow(Mirror):
        def token_maps(self, inputs: Tensor, **options: Any) -> TokenMaps:
            running.append(1)
            most.append(len(running))
            time.sleep(0.05)
            running.pop()
            return super().token_maps(inputs, **options)

    def make(network: Network, side: int) -> MapMaker:
        return MapMaker(network, [Reads(())], views=TestViews((side,)), device="cpu")

    network = Slow()
    one, other = make(network, 16), make(network, 32)
    loaded = pickle.loads(pickle.dumps(make(Mirror(), 16)))
    assert one._lock is other._lock is not loaded._lock
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda maker: maker.run([make_img()]), [one, other]))
    assert most == [1, 1]


def test_rounded_weights_are_there_before_another_stream_can_read_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which a pass in another lane does, where a batch is computed once more."""
    network = torch.nn.Linear(2, 2)
    network.name, network.depth = "linear", 0  # type: ignore[assignment]
    maker = MapMaker(network, [], device="cpu", dtype=torch.bfloat16)  # type: ignore[arg-type]
    maker.device = torch.device("cuda")
    waited: list[torch.dtype] = []
    stream = SimpleNamespace(synchronize=lambda: waited.append(torch.bfloat16))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    rounded: Any = maker._prepare_network()
    assert rounded.weight.dtype == torch.bfloat16 and maker._prepare_network() is rounded
    assert len(waited) == 1


def test_a_pickle_holds_nothing_that_was_made_for_a_device() -> None:
    """Such as weights in half precision on a GPU, which processes that only decode do not see."""
    maker = MapMaker(Mirror(), [Reads(())], views=TestViews((31,)), device="cpu")
    scores = maker.run([make_img()]).compute_scores()
    maker.forward(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    assert maker._running is not None and maker._stats is not None
    maker._running = (torch.device("cuda"), pytest.fail)  # type: ignore[assignment]
    loaded = pickle.loads(pickle.dumps(maker))
    assert loaded._running is None and loaded._stats is None
    np.testing.assert_array_equal(loaded.run([make_img()]).compute_scores(), scores)
