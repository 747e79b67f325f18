"""The public call of the dense CRF: checks its arguments and hands them to a backend.

Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials"
(NeurIPS 2011, arXiv 1210.5644). Meaning of every number as in pydensecrf with a diagonal kernel,
symmetric normalisation and Potts compatibility; the derivation is in this folder's README.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from adcam.ops._backends import (
    choose_backend,
    numba_not_supported_reasons,
    summarize_reasons,
    triton_not_supported_reasons,
)

MIN_PROB = 1e-5
"""Probabilities are raised to this before the logarithm, as ``unary_from_softmax`` of pydensecrf
does; a larger value lets the pairwise terms overrule confident pixels more easily."""

_RANGE_SLACK = 1e-4
"""How far outside [0, 1] a probability may lie: rounding of an interpolation, not an error."""

_SLICE_BYTES = 2**30
"""Memory that the images computed together may take, about; a single image may take more."""

_BATCHED = ("triton", "torch")
"""The backends that compute several images together, on any device."""

_MODULES = {
    "numba": "numba_lattice",
    "reference": "reference",
    "triton": "triton_lattice",
    "torch": "torch_lattice",
    "pydensecrf": "pydensecrf",
}

ArrayT = TypeVar("ArrayT", NDArray[Any], torch.Tensor)


def available_backends() -> dict[str, str | None]:
    """Tell which backends can run here.

    Returns:
        From each backend's name to ``None`` if it can run, else to the reason why it cannot.
        ``"auto"`` is the first of ``"numba"`` and ``"reference"`` that can run; on another device
        than the CPU, the first of ``"triton"`` and ``"torch"``.
    """
    return summarize_reasons(_reasons(None))


def _reasons(device: torch.device | None) -> dict[str, list[str]]:
    """Why each backend cannot run: on this machine, or on ``device`` if it is given.

    Asking loads numba and pydensecrf.
    """
    from adcam.ops.dense_crf import pydensecrf

    return {
        **_reasons_on_cpu(),
        **_reasons_on_device(device),
        "pydensecrf": pydensecrf.not_supported_reasons(),
    }


def _reasons_on_cpu() -> dict[str, list[str]]:
    """As :func:`_reasons`, of the backends that ``"auto"`` chooses from on a CPU."""
    numba = numba_not_supported_reasons("adcam.ops.dense_crf.numba_lattice")
    return {"numba": numba, "reference": []}


def _reasons_on_device(device: torch.device | None) -> dict[str, list[str]]:
    """As :func:`_reasons`, of the backends for a GPU."""
    has_device = device is not None and torch.cuda.is_available()
    of_device = (torch.empty(0, device=device),) if has_device else ()
    return {"triton": triton_not_supported_reasons(*of_device), "torch": []}


def _choose(backend: str, device: torch.device) -> str:
    if device.type != "cpu" and backend in ("auto", *_BATCHED):
        reasons = _reasons_on_device(device)
    else:
        reasons = _reasons_on_cpu() if backend == "auto" else _reasons(device)
    return choose_backend("dense CRF", backend, reasons)


class DenseCRF:
    """A fully connected CRF over the pixels of one image, for any number of inferences.

    What depends on the image alone, the lattices of the two kernels, is built once; every
    inference, whatever its number of labels, reuses it. Not differentiable.

    Args:
        img: (H, W, 3) uint8, an array or a tensor. The order of the three channels does not change
            what the kernel means.
        gaussian: ``(sigma_xy, compat)`` of the smoothness kernel, or ``None`` to leave it out.
            ``sigma_xy`` in pixels: larger smooths over a wider neighbourhood.
            ``compat``: larger removes more small islands.
        bilateral: ``(sigma_xy, sigma_rgb, compat)`` of the appearance kernel, or ``None``.
            ``sigma_xy`` in pixels: larger couples pixels farther apart. ``sigma_rgb`` in grey
            levels of 0..255: larger lets labels cross stronger edges. ``compat``: larger makes
            labels follow the image rather than ``prob``.
        backend: ``"numba"`` (compiled, on as many threads as torch uses, at most four),
            ``"reference"`` (NumPy and SciPy, one thread), ``"triton"`` (kernels for a CUDA
            ``device``), ``"torch"`` (on any ``device``), ``"pydensecrf"`` (the C++ code, extra
            ``crf``; builds its lattices for each inference), or ``"auto"``: on another device than
            the CPU ``"triton"``, else ``"torch"``; on the CPU the first of
            :func:`available_backends` that can run.
        device: The device that computes, e.g. ``"cuda:1"``; ``None`` takes the device of ``img``.

    Raises:
        ValueError: Wrong shape or dtype, a kernel that makes no sense (sigma <= 0, compat < 0) or
            whose lattice cannot be numbered in 64 bits, an unknown backend, or a ``device`` that
            the backend does not compute on.
        RuntimeError: The backend asked for cannot run here; the message holds the reason.
    """

    def __init__(
        self,
        img: NDArray[np.uint8] | torch.Tensor,
        *,
        gaussian: tuple[float, float] | None = (3, 3),
        bilateral: tuple[float, float, float] | None = (50, 5, 10),
        backend: str = "auto",
        device: str | torch.device | None = None,
    ) -> None:
        _check_kernels(gaussian, bilateral)
        _check_img(img)
        self._hw = tuple(img.shape[:2])
        self._device = _device_of(img) if device is None else torch.device(device)
        self._backend = _choose(backend, self._device)
        is_batched = self._backend in _BATCHED
        if device is not None and self._device.type != "cpu" and not is_batched:
            raise ValueError(
                f"device must be 'cpu' for the dense CRF's backend {self._backend!r}, got {device}"
            )
        module = import_module(f"adcam.ops.dense_crf.{_MODULES[self._backend]}")
        self._mean_field = module.MeanField(
            [_as_tensor(img).to(self._device)] if is_batched else _as_numpy(img),
            gaussian=gaussian,
            bilateral=bilateral,
        )

    def infer(self, prob: ArrayT, *, num_iters: int = 10) -> ArrayT:
        """Refine per-pixel label probabilities.

        The energy of a labelling is the sum of ``-log(prob)`` over pixels plus, for every pair of
        pixels with different labels, the two kernels between them times their ``compat``. The
        result is its mean-field approximation, started from ``prob``.

        Args:
            prob: (C, H, W) floating point, in [0, 1]; C >= 1 labels. Values below ``MIN_PROB``
                count as ``MIN_PROB``. Scores that do not sum to 1 over labels are allowed: only
                their ratios matter.
            num_iters: Mean-field updates, >= 0; 0 returns the clipped, normalised ``prob``.

        Returns:
            (C, H, W) float32 marginals that sum to 1 over labels: an array for an array, a tensor
            on the same device for a tensor.

        Raises:
            ValueError: Wrong shape, dtype or range, NaN, or ``num_iters`` < 0.
        """
        _check_num_iters(num_iters)
        _check_prob_shape(prob, self._hw)
        _check_prob_values(prob)
        if self._backend in _BATCHED:
            unaries = [_compute_unary_tensor(prob).to(self._device)]
            (refined,) = self._mean_field.infer(unaries, num_iters=num_iters)
            if isinstance(prob, torch.Tensor):
                return refined.to(prob.device)
            return refined.cpu().numpy()
        unary = -np.log(np.clip(_as_numpy(prob).astype(np.float32), MIN_PROB, 1.0))
        marginals = self._mean_field.infer(unary, num_iters=num_iters)
        if isinstance(prob, torch.Tensor):
            return torch.from_numpy(marginals).to(prob.device)
        return marginals


def dense_crf(
    prob: ArrayT,
    img: NDArray[np.uint8] | torch.Tensor,
    *,
    gaussian: tuple[float, float] | None = (3, 3),
    bilateral: tuple[float, float, float] | None = (50, 5, 10),
    num_iters: int = 10,
    backend: str = "auto",
) -> ArrayT:
    """Refine per-pixel label probabilities with a fully connected CRF, once.

    ``DenseCRF(img, ...).infer(prob, ...)``; for several inferences on an image keep the
    :class:`DenseCRF`.

    Args:
        prob: (C, H, W) label probabilities; see :meth:`DenseCRF.infer`.
        img: (H, W, 3) uint8 image; it follows ``prob`` to another device.
        gaussian: ``(sigma_xy, compat)`` of the smoothness kernel; see :class:`DenseCRF`.
        bilateral: ``(sigma_xy, sigma_rgb, compat)`` of the appearance kernel.
        num_iters: The number of mean-field updates, >= 0.
        backend: What computes; see :class:`DenseCRF`.

    Returns:
        (C, H, W) float32 marginals that sum to 1 over labels.

    Raises:
        ValueError: If an argument is refused by :class:`DenseCRF` or its ``infer``.
        RuntimeError: If the backend asked for cannot run here.
    """
    if isinstance(prob, torch.Tensor) and prob.device.type != "cpu":
        img = torch.as_tensor(img, device=prob.device)
    crf = DenseCRF(img, gaussian=gaussian, bilateral=bilateral, backend=backend)
    return crf.infer(prob, num_iters=num_iters)


def dense_crf_batch(
    probs: Sequence[ArrayT],
    imgs: Sequence[NDArray[np.uint8] | torch.Tensor],
    *,
    gaussian: tuple[float, float] | None = (3, 3),
    bilateral: tuple[float, float, float] | None = (50, 5, 10),
    num_iters: int = 10,
    backend: str = "auto",
) -> list[ArrayT]:
    """Refine the label probabilities of several images, each with its own CRF.

    ``"triton"`` and ``"torch"`` fill a GPU: they compute images with equal numbers of labels
    together, and those of two labels with those of three, whatever their sizes. They take as many
    images at a time as need about 1 GiB of memory, or a 24th of the GPU's memory where that is
    more. The result of an image does not depend on the others. The other backends compute one image
    after another.

    Args:
        probs: Label probabilities (C, H, W), one an image; tensors on one device.
        imgs: Images (H, W, 3) uint8; they follow ``probs`` to another device.
        gaussian: ``(sigma_xy, compat)`` of the smoothness kernel; see :class:`DenseCRF`.
        bilateral: ``(sigma_xy, sigma_rgb, compat)`` of the appearance kernel.
        num_iters: The number of mean-field updates, >= 0.
        backend: What computes; see :class:`DenseCRF`.

    Returns:
        The marginals of each image, as of :func:`dense_crf`.

    Raises:
        ValueError: As :func:`dense_crf`, or not one image for each of ``probs``.
        RuntimeError: As :func:`dense_crf`.
    """
    if len(probs) != len(imgs):
        raise ValueError(
            f"there must be one image for each of probs, got {len(imgs)}, {len(probs)}"
        )
    if not probs:
        return []
    backend = _choose(backend, _device_of(probs[0]))
    kernels: dict[str, Any] = {"gaussian": gaussian, "bilateral": bilateral}
    if backend not in _BATCHED:
        return [
            dense_crf(prob, img, **kernels, num_iters=num_iters, backend=backend)
            for prob, img in zip(probs, imgs, strict=True)
        ]
    _check_kernels(gaussian, bilateral)
    _check_num_iters(num_iters)
    for prob, img in zip(probs, imgs, strict=True):
        _check_img(img)
        _check_prob_shape(prob, tuple(img.shape[:2]))
    module = import_module(f"adcam.ops.dense_crf.{_MODULES[backend]}")
    refined: dict[int, Any] = {}
    most_bytes = _find_slice_bytes(_device_of(probs[0]))
    for part in _plan_slices([tuple(prob.shape) for prob in probs], most_bytes):
        unaries = _compute_unaries([_as_tensor(probs[index]) for index in part])
        tensors = [_as_tensor(imgs[index]).to(unaries[0].device) for index in part]
        marginals = module.MeanField(tensors, **kernels).infer(unaries, num_iters=num_iters)
        refined.update(zip(part, marginals, strict=True))
    is_tensor = isinstance(probs[0], torch.Tensor)
    return [refined[i] if is_tensor else refined[i].numpy() for i in range(len(probs))]


def _find_slice_bytes(device: torch.device) -> int:
    """The memory that images computed together may take; with more, there are fewer launches."""
    if device.type != "cuda":
        return _SLICE_BYTES
    return max(_SLICE_BYTES, torch.cuda.get_device_properties(device).total_memory // 24)


def _plan_slices(shapes: Sequence[tuple[int, ...]], most_bytes: int) -> Iterator[list[int]]:
    """Yield the images that are computed together: as many as fit into the memory, at least one.

    Only images with equal numbers of labels go together, since more labels could change the last
    bits of the others. Two labels go with three: a sum of two numbers and a zero does not depend on
    its order.
    """

    def count_labels(index: int) -> int:
        """The number of labels that an image is computed with."""
        return max(shapes[index][0], 3) if shapes[index][0] > 1 else 1

    part: list[int] = []
    num_pixels = 0
    for index in sorted(range(len(shapes)), key=lambda i: shapes[i][0]):
        _, height, width = shapes[index]
        num_pixels += height * width
        # Sorting the keys takes 9 corners x 40 bytes, the labels six arrays (README).
        is_full = num_pixels * (400 + 24 * count_labels(index)) > most_bytes
        if part and (is_full or count_labels(part[0]) != count_labels(index)):
            yield part
            part, num_pixels = [], height * width
        part.append(index)
    yield part


def _device_of(array: NDArray[Any] | torch.Tensor) -> torch.device:
    return array.device if isinstance(array, torch.Tensor) else torch.device("cpu")


def _compute_unaries(probs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """The unaries of images, views of one tensor: few launches for many images.

    It waits for the device once, to look at the values.
    """
    stacked = torch.cat([prob.flatten() for prob in probs])
    _check_prob_values(stacked)
    split = _compute_unary_tensor(stacked).split([prob.numel() for prob in probs])
    return [part.view(prob.shape) for part, prob in zip(split, probs, strict=True)]


def _compute_unary_tensor(prob: NDArray[Any] | torch.Tensor) -> torch.Tensor:
    return -_as_tensor(prob).float().clamp(MIN_PROB, 1).log()


def _as_tensor(array: NDArray[Any] | torch.Tensor) -> torch.Tensor:
    if isinstance(array, torch.Tensor):
        return array.detach()
    # A copy: torch takes no negative strides and warns of read-only memory.
    return torch.from_numpy(np.array(array, order="C"))


def _as_numpy(array: NDArray[Any] | torch.Tensor) -> NDArray[Any]:
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        # NumPy has no bfloat16.
        return (array.float() if array.is_floating_point() else array).numpy()
    return np.asarray(array)


def _check_kind(name: str, value: object) -> None:
    if not isinstance(value, np.ndarray | torch.Tensor):
        raise ValueError(
            f"{name} must be a NumPy array or a torch.Tensor, got {type(value).__name__}; "
            "numpy.asarray makes an array of a PIL image or a list"
        )


def _check_img(img: NDArray[np.uint8] | torch.Tensor) -> None:
    _check_kind("img", img)
    if img.ndim != 3 or img.shape[2] != 3 or img.dtype not in (np.uint8, torch.uint8):
        raise ValueError(f"img must be (H, W, 3) uint8, got {tuple(img.shape)} {img.dtype}")
    if 0 in img.shape:
        raise ValueError(f"img must have at least one pixel, got {tuple(img.shape)}")


def _check_prob_shape(prob: NDArray[Any] | torch.Tensor, hw: tuple[int, ...]) -> None:
    _check_kind("prob", prob)
    shape = tuple(prob.shape)
    is_float = (
        prob.is_floating_point()
        if isinstance(prob, torch.Tensor)
        else np.issubdtype(prob.dtype, np.floating)
    )
    if len(shape) != 3 or not is_float:
        raise ValueError(f"prob must be (C, H, W) floating point, got {shape} {prob.dtype}")
    if shape[0] == 0:
        raise ValueError(f"prob must have at least one label, got {shape}")
    if shape[1:] != hw:
        raise ValueError(f"prob is for images of (H, W) = {shape[1:]} but img is {hw}")


def _check_prob_values(prob: NDArray[Any] | torch.Tensor) -> None:
    """Refuse what is no probability; waits for the device of a tensor, once."""
    if isinstance(prob, torch.Tensor):
        low, high = torch.stack(prob.detach().aminmax()).float().tolist()
    else:
        low, high = float(prob.min()), float(prob.max())
    if not (low >= -_RANGE_SLACK and high <= 1 + _RANGE_SLACK):  # also true for NaN
        raise ValueError(f"prob must lie in [0, 1] without NaN, got values in [{low}, {high}]")


def _check_num_iters(num_iters: int) -> None:
    if num_iters < 0:
        raise ValueError(f"num_iters must be at least 0, got {num_iters}")


def _check_kernels(gaussian: Sequence[float] | None, bilateral: Sequence[float] | None) -> None:
    for name, values, fields in (
        ("gaussian", gaussian, ("sigma_xy", "compat")),
        ("bilateral", bilateral, ("sigma_xy", "sigma_rgb", "compat")),
    ):
        if values is None:
            continue
        if len(values) != len(fields):
            raise ValueError(f"{name} must be ({', '.join(fields)}) or None, got {values!r}")
        for field, value in zip(fields, values, strict=True):
            lowest_is_legal = field == "compat"
            if not np.isfinite(value) or value < 0 or (value == 0 and not lowest_is_legal):
                bound = ">= 0" if lowest_is_legal else "> 0"
                raise ValueError(f"{field} of {name} must be finite and {bound}, got {value}")
