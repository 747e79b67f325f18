"""What a GPU is told again and again, told once: CUDA graphs of a function, by input shapes.

A network in batches of a few images spends more time telling the GPU what to do, operation by
operation, than the GPU needs to do it. A graph is the whole list, started by one call.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from adcam.errors import lacks_memory
from adcam.labeling.transfer import find_stream

Replay: TypeAlias = Callable[..., Any]
"""From tensors of one set of shapes to what the function returns of them."""

Key: TypeAlias = tuple[tuple[torch.Size, torch.dtype], ...]


class GraphCache:
    """A function of tensors that is captured for shapes that come back, and called for others.

    What a call returns holds until the next one: graphs share their memory. Where it is too short
    for another graph, all are let go of, and half as many are kept from then on.

    Args:
        function: The function. It must not wait for the device, and must do the same whatever the
            values of the tensors.
        capture: What makes a graph of the function and tensors of the shapes at hand.
        first: How often shapes are seen before they are captured, which takes about as long as two
            calls. A larger number captures less that does not come back.
        most: The number of graphs that are kept, those used last. More take more memory.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        capture: Callable[..., Replay] | None = None,
        first: int = 1,
        most: int = 16,
    ) -> None:
        self._function = function
        self._capture = capture or CudaCapture()
        self._first = first
        self._most = most
        self._seen: Counter[Key] = Counter()
        self._graphs: OrderedDict[Key, Replay] = OrderedDict()
        self._is_off = False
        self._lock = threading.Lock()

    def __call__(self, *tensors: Tensor) -> Any:
        """Call the function, or replay its graph for tensors of these shapes."""
        with self._lock:
            replay = self._find(tensors)
        # Not while an error is handled, which keeps what the capture had in memory.
        return (replay or self._function)(*tensors)

    def free_memory(self) -> bool:
        """Let go of all graphs, whose memory others then get; shapes that come back get new ones.

        Any thread may call this.

        Returns:
            Whether there were any.
        """
        with self._lock:
            there_were = bool(self._graphs)
            self._graphs.clear()
            self._seen.clear()
        return there_were

    def _find(self, tensors: tuple[Tensor, ...]) -> Replay | None:
        """Return the graph for tensors of these shapes, captured if need be."""
        key = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        self._seen[key] += 1
        if self._is_off or (self._seen[key] <= self._first and key not in self._graphs):
            return None
        if key not in self._graphs and not self._add(key, tensors):
            return None
        self._graphs.move_to_end(key)
        return self._graphs[key]

    def _add(self, key: Key, tensors: tuple[Tensor, ...]) -> bool:
        """Capture a graph; where that fails, no other is tried, unless only memory was short."""
        try:
            self._graphs[key] = self._capture(self._function, *tensors)
        except RuntimeError as error:
            self._graphs.clear()
            self._seen.clear()
            self._most = self._most // 2 if lacks_memory(error) else 0
            if self._most == 0:
                self._is_off = True
                reason = str(error).splitlines()[0]
                warnings.warn(f"CUDA graphs are off, which only costs time: {reason}", stacklevel=4)
            return False
        if len(self._graphs) > self._most:
            self._graphs.popitem(last=False)
        return True


def free_graphs(function: object) -> bool:
    """Let go of the graphs of a function, if it is replayed by any; tell whether it was."""
    return isinstance(function, GraphCache) and function.free_memory()


_CAPTURING = threading.Lock()
"""Held during a capture: all are in one stream, whose work space their graphs go on using."""


class CudaCapture:
    """Captures CUDA graphs that share one pool of memory, other threads going on meanwhile."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def __call__(self, function: Callable[..., Any], *tensors: Tensor) -> Replay:
        """Capture ``function(*tensors)`` and return what computes it of other tensors.

        Raises:
            RuntimeError: It does something that a graph cannot hold.
        """
        if not self._graphs:  # a pool ends with the last of its graphs
            self._pool = torch.cuda.graph_pool_handle()
        static = [tensor.clone() for tensor in tensors]
        graph = torch.cuda.CUDAGraph()
        self._graphs.add(graph)
        current = torch.cuda.current_stream(tensors[0].device)
        stream = find_stream(tensors[0].device, "capture")
        with _CAPTURING, torch.cuda.stream(stream):
            stream.wait_stream(current)
            # Not torch.cuda.graph: it waits for the device and empties the cache of its memory.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                result = function(*static)
            finally:
                graph.capture_end()
        current.wait_stream(stream)

        def replay(*tensors: Tensor) -> Any:
            for kept, tensor in zip(static, tensors, strict=True):
                kept.copy_(tensor)
            graph.replay()
            return result

        return replay
