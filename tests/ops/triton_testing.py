"""Three places where a Triton kernel is tested: the interpreter, the compiler, a GPU.

- :func:`interpreted` runs a test on the CPU, in Triton's interpreter.
- :func:`compile_ahead` compiles a kernel for a GPU that is not there, and :func:`record_launches`
  with :func:`compile_launch` just the kernels that a call would launch, as it would launch them.
- The fixture ``gpu`` (conftest.py) is the real device.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import itertools
import multiprocessing
import os
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import pytest
import torch

from adcam.ops import _launch
from adcam.ops._backends import triton_package_reason

# Compute capability -> shared memory that one block may use, in bytes: CUDA C++ Programming
# Guide, table "Technical specifications per compute capability", less the 1 KiB that CUDA takes.
SHARED_MEMORY = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}

# Columns of the tensor memory that sm_100 has (triton/compiler/compiler.py, ``_init_handles``).
TENSOR_MEMORY = 512


def is_old_triton() -> bool:
    """Whether this is Triton 3.2, of torch 2.6: it describes arguments in another way."""
    try:
        return metadata.version("triton").startswith("3.2.")
    except metadata.PackageNotFoundError:
        return False


# Triton 3.2 knows no sm_100 and ends the process.
CAPABILITIES = tuple(sm for sm in SHARED_MEMORY if sm < 100 or not is_old_triton())

needs_triton = pytest.mark.skipif(
    triton_package_reason() is not None, reason=triton_package_reason() or ""
)


def interpreted(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a process where Triton interprets its kernels on CPU tensors.

    ``triton.jit`` looks at ``TRITON_INTERPRET`` when it decorates, and triton decorates its own
    library on import: an interpreter cannot be had in a process that also compiles. All such
    tests share one other process, which imports the test's module by name.

    Args:
        test: A function at the top of a test module, imports of kernel files inside it. Parameters
            are passed on pickled, so fixtures must be picklable.
    """

    @needs_triton
    @functools.wraps(test)
    def run(**kwargs: Any) -> None:
        _interpreter().submit(_call, test.__module__, test.__name__, kwargs).result()

    return run


def on_each_gpu(
    cases: Iterable[tuple[Any, ...]], *, never_slow: Sequence[tuple[Any, ...]]
) -> list[Any]:
    """Parameters of a test: each case with each of :data:`CAPABILITIES`, which comes last.

    Args:
        cases: Values of the other parameters.
        never_slow: Those that every run compiles for one GPU, each for the next. All else is slow.
    """
    gpus = dict(zip(never_slow, itertools.cycle(CAPABILITIES), strict=False))
    return [
        pytest.param(*case, sm, marks=() if gpus.get(case) == sm else pytest.mark.slow)
        for case in dict.fromkeys((*never_slow, *cases))
        for sm in CAPABILITIES
    ]


def compile_ahead(
    kernel: Any,
    capability: int,
    *,
    signature: Mapping[str, str],
    constants: Mapping[str, Any],
    num_warps: int = 4,
    num_stages: int = 3,
    enable_fp_fusion: bool = True,
) -> Any:
    """Compile a kernel for a GPU that need not be here, and check what comes out.

    Args:
        kernel: What ``triton.jit`` (or ``autotune`` around it) made.
        capability: One of :data:`CAPABILITIES`.
        signature: From each argument that is not constant to its type, such as ``"*fp32"``,
            ``"i32"``, ``"i64"``, ``"fp32"``. Pointers count as aligned to 16 bytes, as those of
            torch are; write ``"*fp32:1"`` for one that is not, ``"i32:16"`` for a multiple of 16.
        constants: From each ``tl.constexpr`` argument to its value.
        num_warps: As at launch.
        num_stages: As at launch.
        enable_fp_fusion: As at launch: whether products may be fused with sums.

    Returns:
        Triton's compiled kernel: ``.asm["ptx"]``, ``.asm["cubin"]``, ``.metadata.shared``.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    function = kernel.fn if hasattr(kernel, "configs") else kernel
    kinds, attrs = {}, {}
    for name in function.arg_names:
        if name in constants:
            kinds[name] = "constexpr"
            continue
        kind, _, divisor = signature[name].partition(":")
        kinds[name] = kind
        if divisor == "16" or (kind.startswith("*") and not divisor):
            attrs[(function.arg_names.index(name),)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        _make_source(function, kinds, constants, attrs),
        target=GPUTarget("cuda", capability, 32),
        # As every launch says it: Triton 3.9 warns when the choice is left to its default.
        options={
            "num_warps": num_warps,
            "num_stages": num_stages,
            "enable_fp_fusion": enable_fp_fusion,
        },
    )
    assert f".target sm_{capability}" in compiled.asm["ptx"]
    assert compiled.asm["cubin"][:4] == b"\x7fELF"
    assert compiled.metadata.shared <= SHARED_MEMORY[capability]
    assert (getattr(compiled.metadata, "tmem_size", None) or 0) <= TENSOR_MEMORY
    return compiled


@dataclass(frozen=True)
class Launch:
    """What a kernel would have been launched with.

    Attributes:
        kernel: What ``triton.jit`` made.
        grid: Number of programs along each axis.
        values: Arguments by name.
        num_warps: Warps of a program.
        num_stages: Stages of its loops.
    """

    kernel: Any
    grid: tuple[int, ...]
    values: Mapping[str, Any]
    num_warps: int
    num_stages: int

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)


@contextlib.contextmanager
def record_launches(capability: int | None = None) -> Iterator[list[Launch]]:
    """Collect launches instead of running them: no result of a kernel is written meanwhile.

    Args:
        capability: The GPU whose shipped tiles are launched, one of :data:`CAPABILITIES`. With
            ``None``, tensors on the CPU get the first tile of each kernel.
    """
    launches: list[Launch] = []

    def record(kernel: Any, grid: Any, *args: Any, **options: Any) -> None:
        warps, stages = options.pop("num_warps", 4), options.pop("num_stages", 3)
        values = {**dict(zip(kernel.arg_names, args, strict=False)), **options}
        assert list(values) == [name for name in kernel.arg_names if name in values]
        assert len(values) == len(kernel.arg_names)
        launches.append(Launch(kernel, tuple(grid), values, warps, stages))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_launch, "launch", record)
        if capability is not None:
            patch.setattr(_launch, "capability_of", lambda device: divmod(capability, 10))
        yield launches


POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
}


def compile_launch(launch: Launch, capability: int) -> Any:
    """Compile a kernel with the types, divisors and constants that Triton takes from a launch.

    A number that is 1 becomes a constant, a multiple of 16 and an aligned pointer are told apart
    (triton/runtime/jit.py, ``specialize_impl``).
    """
    signature, constants = {}, {}
    for parameter in launch.kernel.params:
        value = launch.values[parameter.name]
        if isinstance(value, torch.Tensor):
            kind = POINTERS[value.dtype]
            signature[parameter.name] = kind if value.data_ptr() % 16 == 0 else f"{kind}:1"
        elif parameter.is_constexpr or value is None:
            constants[parameter.name] = value
        elif parameter.do_not_specialize and isinstance(value, int):
            signature[parameter.name] = "i32"
        elif value == 1 and isinstance(value, int):
            constants[parameter.name] = value
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            kind = "i32" if -(2**31) <= value < 2**31 else "i64"
            signature[parameter.name] = kind + ":16" * (value % 16 == 0)
    return compile_ahead(
        launch.kernel,
        capability,
        signature=signature,
        constants=constants,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )


def _make_source(
    function: Any, kinds: dict[str, str], constants: Mapping[str, Any], attrs: Mapping[Any, Any]
) -> Any:
    from triton.compiler import ASTSource

    if not is_old_triton():
        return ASTSource(function, signature=kinds, constexprs=dict(constants), attrs=attrs)
    from triton.backends.compiler import AttrsDescriptor

    aligned = {"tt.divisibility": tuple(place for (place,) in attrs)}
    return ASTSource(
        function,
        signature={name: kind for name, kind in kinds.items() if kind != "constexpr"},
        constants=dict(constants),
        attrs=AttrsDescriptor.from_dict({"arg_properties": aligned, "cls": "AttrsDescriptor"}),
    )


def stand_in_for_the_driver() -> None:
    """Let Triton 3.2 decorate kernels without a GPU: it asks its driver how to time them."""
    if is_old_triton() and not torch.cuda.is_available():
        from triton.runtime import driver

        driver.set_active(types.SimpleNamespace(get_benchmarker=lambda: None))


@contextlib.contextmanager
def nan_poisoned() -> Iterator[None]:
    """Make new empty float tensors hold NaN, so that what is left out is not 0 by chance.

    Others stay: Triton's own buffers of integers, say, which NaN cannot fill.
    """

    def poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def fill(*args: Any, **kwargs: Any) -> torch.Tensor:
            made = make(*args, **kwargs)
            return made.fill_(torch.nan) if made.is_floating_point() else made

        return fill

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", poisoned(torch.empty))
        patch.setattr(torch, "empty_like", poisoned(torch.empty_like))
        patch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
        yield


@functools.cache
def _interpreter() -> ProcessPoolExecutor:
    pool = ProcessPoolExecutor(
        max_workers=1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_interpreter,
    )
    atexit.register(pool.shutdown)
    return pool


def _start_interpreter() -> None:
    if "triton" in sys.modules:
        raise RuntimeError("triton was imported before the interpreter could be chosen")
    os.environ["TRITON_INTERPRET"] = "1"
    stand_in_for_the_driver()


def _call(module: str, name: str, kwargs: dict[str, Any]) -> None:
    getattr(importlib.import_module(module), name).__wrapped__(**kwargs)
