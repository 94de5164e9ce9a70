"""Operations in a process in which any allocation may fail: run as a program, with shortage.c preloaded.

    python shortages.py OPERATION KIND once|lasting WORKERS FIRST SECONDS

Request FIRST for memory, threads or pages of memory is the first to fail, then the next, until a call needs no more of
them. After each failure all must be as before the call or as after it, and the same call must succeed. Prints a line
before each point, and a dictionary of counts at the end.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[1]))  # last: tests/kvit would hide kvit

import numpy as np

import kvit
import kvit.cache.maintenance  # CPython's import fails in its own words, or never ends: what is imported late, is here
import kvit.ops.convert
from kvit._native import host
from support.cache_models import CacheModel
from support.caches import BFLOAT16, make_case, new_tokens, poisoned

OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY


class CacheCall:
    """A call of CacheModel: `kind` is one of its methods."""

    def __init__(self, kind: str):
        self.kind, self.number = kind, 0
        self.prepare()

    def prepare(self) -> None:
        """Three sequences with pages that two share, and something to defragment."""
        self.number += 1
        self.model = CacheModel(np.random.default_rng(self.number))
        gone = self.model.cache.sequence()
        gone.append(*self.model.of_layers(self.model.new_rows(1)))
        for kind in ("start", "append", "start", "append", "fork", "append", "fork"):
            getattr(self.model, kind)(lambda call: call() or True)
        gone.free()

    def run(self, attempt: Any) -> bool:
        done = []

        def watched(call: Any) -> bool:
            done.append(attempt(call))
            return done[-1]

        getattr(self.model, self.kind)(watched)
        self.model.check()
        return all(done)


class PlainCall:
    """A call whose result is known: `make` gives the call, which returns arrays."""

    def __init__(self, make: Any):
        self.make = make
        self.wanted = [np.array(x) for x in make()()]

    def prepare(self) -> None:
        self.call = self.make()

    def run(self, attempt: Any) -> bool:
        found: list[Any] = []
        is_done = attempt(lambda: found.extend(self.call()))
        if is_done:
            self.compare(found)
        self.compare(self.call())  # the same operation, if it was made before the failure
        return is_done

    def compare(self, found: list[Any]) -> None:
        for array, wanted in zip(found, self.wanted, strict=True):
            np.testing.assert_array_equal(np.asarray(array).view(np.uint8), wanted.view(np.uint8))


def scene() -> Any:
    rng = np.random.default_rng(1)
    case = make_case(rng, [300, 5, 17], kv_heads=2)
    return case, case.queries(rng, 3, 4), new_tokens(rng, 3)


def attention(make_anew: bool) -> Any:
    case, q, _ = scene()
    op = kvit.Attention(case.view, 4)
    out, lse = poisoned(q.shape, BFLOAT16), np.zeros(q.shape[:2], np.float32)

    def call() -> list[Any]:
        mine = kvit.Attention(case.view, 4) if make_anew else op
        mine(q, case.view, case.page_table, out=out, lse=lse)
        mine.check()
        return [out, lse]

    return lambda: call


def append() -> Any:
    case, q, (k, v) = scene()
    op = kvit.Append(case.view, rope=kvit.Rope(64))
    turned = np.zeros_like(q)

    def call() -> list[Any]:
        op(k, v, case.view, case.page_table, q=q, q_out=turned)
        op.check()
        return [turned, *case.pools_on_device()]

    return lambda: call


def gather() -> Any:
    case, _, (k, v) = scene()
    op = kvit.Gather(case.view)
    outs = [np.zeros_like(k), np.zeros_like(v)]

    def call() -> list[Any]:
        op(case.view, case.page_table, out=outs)
        op.check()
        return outs

    return lambda: call


def merge() -> Any:
    rng = np.random.default_rng(2)
    outs, lses = rng.standard_normal((20, 6, 4, 64)).astype(np.float16), rng.standard_normal((20, 6, 4)).astype("f4")
    return lambda: lambda: [x.numpy() for x in kvit.merge_states(list(outs), list(lses))]


def convert() -> Any:
    case, *_ = scene()
    memory = [np.zeros((case.view.num_pages, 2, 16, 64), np.int8) for _ in "kv"]
    params = [np.zeros((case.view.num_pages, 2, 16, 2), BFLOAT16) for _ in "kv"]

    def call() -> list[Any]:
        target = kvit.CacheView(
            *memory, layout="HND", kv="int8", k_params=params[0], v_params=params[1], dtype="bfloat16"
        )
        op = kvit.ConvertPages(case.view, target)
        op(case.view, target)
        op.check()
        return memory

    return lambda: call


def graph() -> Any:
    case, q, _ = scene()
    op, stream = kvit.Attention(case.view, 4), kvit.Stream("host")
    out = poisoned(q.shape, BFLOAT16)

    def call() -> list[Any]:
        with kvit.Graph.capture(stream) as made:
            op(q, case.view, case.page_table, out=out, stream=stream)
        made.launch()
        op.check(stream)
        return [out]

    return lambda: call


def new_objects() -> Any:
    rows = np.arange(64 * 32, dtype=np.float32).reshape(32, 64)

    def call() -> list[Any]:
        rope = kvit.Rope(64, scaling={"rope_type": "linear", "factor": 2.0})
        cache = kvit.PagedCache(4, 4, 1, 64, device="host", rope=rope)
        cache.sequence().append(*np.zeros((2, 3, 1, 64), BFLOAT16))
        made = kvit.Buffer.from_numpy(rows, "host")
        seen = kvit.Tensor.wrap(made)
        return [np.asarray(kvit.Buffer.from_numpy(seen, "host") if isinstance(seen, np.ndarray) else made[2:])]

    return lambda: call


CACHE_CALLS = ("start", "fork", "append", "truncate", "free", "forget", "defragment", "read", "attend", "requantise")
PLAIN_CALLS = {
    "attention": lambda: attention(False),
    "new_attention": lambda: attention(True),
    "append_rows": append,
    "gather_rows": gather,
    "merge": merge,
    "convert": convert,
    "graph": graph,
    "new_objects": new_objects,
}


def main(name: str, kind: str, how: str, workers: str, first: str, seconds: str) -> None:
    shim = ctypes.CDLL(None)
    left = ctypes.c_int.in_dll(shim, f"shortage_left_{kind}")
    failed = ctypes.c_int.in_dll(shim, "shortage_failed")
    _ = [getattr(kvit, public) for public in kvit.__all__]  # names that are imported when they are first asked for
    ctypes.c_int.in_dll(shim, "shortage_lasts").value = how == "lasting"
    host.configure(workers=int(workers))
    case: Any = CacheCall(name) if name in CACHE_CALLS else PlainCall(PLAIN_CALLS[name]())
    counts = {"points": 0, "out of memory": 0, "right all the same": 0}
    deadline, point, never = time.monotonic() + float(seconds), int(first), -1
    while time.monotonic() < deadline:
        case.prepare()
        print(point, flush=True)
        failed.value = 0

        def attempt(call: Any, point: int = point) -> bool:
            try:
                left.value = point
                call()
                left.value = never
                return True
            except (MemoryError, kvit.HostBackendError):
                left.value = never
                return False
            except kvit.DriverError as error:
                left.value = never
                assert error.status == OUT_OF_MEMORY, error
                return False
            except SystemError as error:  # CPython 3.11 says nothing where it has no memory for a frame of its own
                left.value = never
                assert "without exception set" in str(error), error
                return False
            finally:
                left.value = never

        is_done = case.run(attempt)
        if failed.value == 0:
            break
        counts["points"] += 1
        counts["right all the same" if is_done else "out of memory"] += 1
        point += 1 + point // 300
    print(json.dumps(counts))


if __name__ == "__main__":
    main(*sys.argv[1:])
