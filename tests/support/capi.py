"""The C API as ctypes sees it: any bad call can be made from Python, and every call gives the GIL up first."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from typing import Any

import kvit

MAX_NDIM = 8
STATUSES = [
    "OK", "SHAPE", "DTYPE", "DEVICE", "LAYOUT", "CACHE_FULL", "SEQUENCE_FREED", "PAGE_TABLE", "KERNEL_MISSING",
    "DRIVER", "NO_GPU", "HOST_BACKEND", "ARGUMENT", "HANDLE", "BUSY", "OUT_OF_MEMORY", "NO_INTERPRETER", "INTERNAL",
    "INTERRUPTED", "STEP",
]  # fmt: skip
ATTENTION, APPEND, GATHER, COPY_PAGES, CONVERT_PAGES = range(5)
DIRECT, GRAPH = range(2)
NHD, HND = 1, 2
HADAMARD = 0x100  # added to a dtype


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p),
        ("shape", c_int64 * MAX_NDIM),
        ("strides", c_int64 * MAX_NDIM),
        *[(name, c_int32) for name in ("ndim", "dtype", "device_type", "device_id", "readonly", "reserved")],
    ]


_TENSOR = POINTER(Tensor)


class PageTable(ctypes.Structure):
    _fields_ = [(name, _TENSOR) for name in ("pages", "indptr", "lengths")]


class Fault(ctypes.Structure):
    _fields_ = [(name, c_int32) for name in ("sequence", "slot", "value")]


class ViewOptions(ctypes.Structure):
    _fields_ = [
        ("size", c_uint32),
        ("layout", c_int32),
        ("k", _TENSOR),
        ("v", _TENSOR),
        ("page_size", c_int64),
        *[(name, _TENSOR) for name in ("k_params", "v_params", "k_scale", "v_scale")],
        *[(name, c_int32) for name in ("k_dtype", "v_dtype", "dtype", "reserved")],
    ]


class ViewInfo(ctypes.Structure):
    _fields_ = [
        ("size", c_uint32),
        *[(name, c_int32) for name in ("dtype", "k_dtype", "v_dtype")],
        *[(name, c_int64) for name in ("num_pages", "page_size")],
        *[(name, c_int32) for name in ("kv_heads", "head_dim", "device_type", "device_id", "v_dim", "reserved")],
    ]


class OpOptions(ctypes.Structure):
    _fields_ = [
        ("size", c_uint32),
        ("kind", c_int32),
        ("view", c_void_p),
        ("query_heads", c_int32),
        ("dtype", c_int32),
        ("scale", c_float),
        *[(name, c_int32) for name in ("mask", "tokens_per_sequence", "split_tokens")],
        ("workspace", _TENSOR),
        *[(name, c_int32) for name in ("launch", "reads_ahead", "window_left", "window_right", "chunk")],
        ("softcap", c_float),
        *[(name, c_int32) for name in ("takes_spans", "takes_tree")],
        *[(name, _TENSOR) for name in ("sinks", "alibi", "temperature")],
        ("rope", c_void_p),
        *[(name, _TENSOR) for name in ("k_norm", "q_norm")],
        *[(name, c_float) for name in ("norm_eps", "norm_offset")],
        ("target", c_void_p),
    ]


class OpInfo(ctypes.Structure):
    _fields_ = [
        ("size", c_uint32),
        ("kind", c_int32),
        ("workspace_bytes", c_int64),
        *[(name, c_int32) for name in ("dtype", "k_dtype", "v_dtype", "query_heads", "kv_heads", "head_dim")],
        *[(name, c_int32) for name in ("device_type", "device_id", "v_dim", "reserved")],
    ]


class LayerSpec(ctypes.Structure):
    _fields_ = [
        ("size", c_uint32),
        *[(name, c_int32) for name in ("count", "kv_heads", "head_dim", "v_dim", "k_dtype", "v_dtype", "shares_kv")],
        *[(name, c_int32) for name in ("is_unturned", "window_left", "window_right", "reserved")],
        ("rope", c_void_p),
        *[(name, _TENSOR) for name in ("k_scale", "v_scale")],
    ]


class CacheOptions(ctypes.Structure):
    _fields_ = [
        ("size", c_uint32),
        ("layout", c_int32),
        *[(name, c_int64) for name in ("pages", "page_size")],
        *[(name, c_int32) for name in ("kv_heads", "head_dim", "dtype", "k_dtype", "v_dtype")],
        *[(name, c_int32) for name in ("device_type", "device_id", "reserved")],
        *[(name, _TENSOR) for name in ("k_scale", "v_scale")],
        ("rope", c_void_p),
        ("specs", POINTER(LayerSpec)),
        *[(name, c_int32) for name in ("num_specs", "num_layers", "v_dim", "shares_kv", "storage", "reserved_2")],
    ]


class CacheInfo(ctypes.Structure):
    _fields_ = [
        ("size", c_uint32),
        *[(name, c_int32) for name in ("dtype", "k_dtype", "v_dtype")],
        *[(name, c_int64) for name in ("num_pages", "num_free_pages", "page_size", "bytes")],
        *[(name, c_int32) for name in ("kv_heads", "head_dim", "device_type", "device_id", "num_layers", "reserved")],
    ]


class LayerInfo(ctypes.Structure):
    _fields_ = [
        ("size", c_uint32),
        *[(name, c_int32) for name in ("dtype", "k_dtype", "v_dtype", "kv_heads", "head_dim", "v_dim", "shares_kv")],
        *[(name, c_int32) for name in ("has_rope", "window_left", "window_right", "reserved")],
    ]


class AttentionOptions(ctypes.Structure):
    _fields_ = [
        ("size", c_uint32),
        ("mask", c_int32),
        ("scale", c_float),
        *[(name, c_int32) for name in ("window_left", "window_right", "chunk")],
        ("softcap", c_float),
        ("reserved", c_int32),
        *[(name, _TENSOR) for name in ("sinks", "alibi", "temperature", "spans", "tree")],
    ]


class RopeOptions(ctypes.Structure):
    _fields_ = [
        ("size", c_uint32),
        *[(name, c_int32) for name in ("head_dim", "rotary_dim", "interleaved")],
        ("base", c_double),
        ("scaling", c_char_p),
    ]


class AppendExtras(ctypes.Structure):
    _fields_ = [
        ("size", c_uint32),
        ("reserved", c_int32),
        *[(name, _TENSOR) for name in ("q", "q_out", "positions", "prefix_lengths", "k_bias", "v_bias", "q_bias")],
    ]


class SequenceInfo(ctypes.Structure):
    _fields_ = [
        ("size", c_uint32),
        ("reserved", c_int32),
        *[(name, c_int64) for name in ("length", "num_pages")],
    ]


class BatchOptions(ctypes.Structure):
    _fields_ = [("size", c_uint32), ("reserved", c_int32), ("max_tokens", c_int64), ("stream", c_void_p)]


class BatchInfo(ctypes.Structure):
    _fields_ = [("size", c_uint32), ("has_open_step", c_int32), ("num_sequences", c_int64), ("max_pages", c_int64)]


class SwappedInfo(ctypes.Structure):
    _fields_ = [("size", c_uint32), ("reserved", c_int32), *[(n, c_int64) for n in ("length", "num_pages", "bytes")]]


def _call(*arguments: Any) -> Any:
    return ctypes.CFUNCTYPE(c_int32, *arguments)


_HANDLE = c_void_p
_NEW = POINTER(c_void_p)
_STREAM = c_void_p
_LAUNCH = (_HANDLE, _HANDLE, POINTER(PageTable))
_SEQUENCES = (_HANDLE, POINTER(c_void_p), c_int64)
_OF_LAYER = (_HANDLE, c_int32, POINTER(c_void_p), c_int64)


class Table(ctypes.Structure):
    """struct kvit_api."""

    _fields_ = [
        ("size", c_uint32),
        ("version", c_uint32),
        ("last_error", ctypes.CFUNCTYPE(c_char_p)),
        ("view_create", _call(POINTER(ViewOptions), _NEW)),
        ("view_query", _call(_HANDLE, POINTER(ViewInfo))),
        ("view_destroy", _call(_HANDLE)),
        ("op_create", _call(POINTER(OpOptions), _NEW)),
        ("op_query", _call(_HANDLE, POINTER(OpInfo))),
        ("op_explain", _call(_HANDLE, c_void_p, c_size_t, POINTER(c_size_t))),
        ("op_check", _call(_HANDLE, _STREAM, POINTER(Fault))),
        ("op_destroy", _call(_HANDLE)),
        ("attention", _call(*_LAUNCH, _TENSOR, _TENSOR, _TENSOR, _TENSOR, _STREAM)),
        ("append", _call(*_LAUNCH, _TENSOR, _TENSOR, _TENSOR, _STREAM)),
        ("gather", _call(*_LAUNCH, _TENSOR, _TENSOR, _TENSOR, _STREAM)),
        ("merge_states", _call(*[_TENSOR] * 6, _STREAM)),
        ("cache_create", _call(POINTER(CacheOptions), _NEW)),
        ("cache_query", _call(_HANDLE, POINTER(CacheInfo))),
        ("cache_destroy", _call(_HANDLE)),
        ("cache_append", _call(*_SEQUENCES, _TENSOR, _TENSOR, POINTER(c_int64), _STREAM)),
        (
            "cache_attention",
            _call(*_SEQUENCES, _TENSOR, _TENSOR, _TENSOR, POINTER(c_int64), c_float, c_int32, _STREAM),
        ),
        ("cache_check", _call(_HANDLE, _STREAM, POINTER(Fault))),
        ("sequence_create", _call(_HANDLE, _NEW)),
        ("sequence_query", _call(_HANDLE, POINTER(SequenceInfo))),
        ("sequence_fork", _call(_HANDLE, _NEW)),
        ("sequence_truncate", _call(_HANDLE, c_int64)),
        ("sequence_destroy", _call(_HANDLE)),
        ("cache_gather", _call(*_SEQUENCES, _TENSOR, _TENSOR, _STREAM)),
        ("cache_view", _call(_HANDLE, _NEW)),
        ("sequence_pages", _call(_HANDLE, POINTER(c_int32), c_int64, POINTER(c_int64))),
        ("attention_masked", _call(*_LAUNCH, *[_TENSOR] * 6, _STREAM)),
        ("rope_create", _call(POINTER(RopeOptions), _NEW)),
        ("rope_destroy", _call(_HANDLE)),
        ("append_rotated", _call(*_LAUNCH, _TENSOR, _TENSOR, _TENSOR, POINTER(AppendExtras), _STREAM)),
        ("copy_pages", _call(_HANDLE, _TENSOR, _TENSOR, _STREAM)),
        ("convert_pages", _call(_HANDLE, _HANDLE, _TENSOR, _TENSOR, _STREAM)),
        ("cache_append_rotated", _call(*_SEQUENCES, *[_TENSOR] * 4, POINTER(c_int64), _STREAM)),
        ("cache_gather_layout", _call(*_SEQUENCES, _TENSOR, _TENSOR, c_int32, _STREAM)),
        ("cache_defragment", _call(_HANDLE, POINTER(c_int64), _STREAM)),
        ("cache_requantise", _call(_HANDLE, c_int32, c_int32, _TENSOR, _TENSOR, _STREAM)),
        ("layer_query", _call(_HANDLE, c_int32, POINTER(LayerInfo))),
        ("layer_view", _call(_HANDLE, c_int32, _NEW)),
        (
            "layer_attention",
            _call(*_OF_LAYER, _TENSOR, _TENSOR, _TENSOR, POINTER(c_int64), POINTER(AttentionOptions), _STREAM),
        ),
        ("layer_gather", _call(*_OF_LAYER, _TENSOR, _TENSOR, c_int32, _STREAM)),
        (
            "cache_append_layers",
            _call(*_SEQUENCES, POINTER(_TENSOR), POINTER(_TENSOR), c_int32, POINTER(c_int64), _STREAM),
        ),
        ("cache_pages_needed", _call(*_SEQUENCES, POINTER(c_int64), POINTER(c_int64))),
        ("cache_shift", _call(*_SEQUENCES, POINTER(c_int64), POINTER(c_int64), c_int32, _STREAM)),
        ("step_create", _call(*_SEQUENCES, POINTER(c_int64), _STREAM, _NEW)),
        ("step_append", _call(_HANDLE, c_int32, *[_TENSOR] * 4)),
        (
            "step_attention",
            _call(_HANDLE, c_int32, _TENSOR, _TENSOR, _TENSOR, POINTER(c_int64), POINTER(AttentionOptions)),
        ),
        ("step_commit", _call(_HANDLE)),
        ("step_destroy", _call(_HANDLE)),
        ("op_copy_pages", _call(_HANDLE, _HANDLE, _TENSOR, _TENSOR, _TENSOR, _STREAM)),
        ("op_convert_pages", _call(_HANDLE, _HANDLE, _HANDLE, _TENSOR, _TENSOR, _STREAM)),
        ("batch_create", _call(*_SEQUENCES, POINTER(BatchOptions), _NEW)),
        ("batch_query", _call(_HANDLE, POINTER(BatchInfo))),
        ("batch_use", _call(*_SEQUENCES)),
        ("batch_step", _call(_HANDLE, POINTER(c_int64), _NEW)),
        (
            "batch_attention",
            _call(_HANDLE, c_int32, _TENSOR, _TENSOR, _TENSOR, POINTER(c_int64), POINTER(AttentionOptions)),
        ),
        ("batch_destroy", _call(_HANDLE)),
        ("cache_swap_out", _call(_HANDLE, _HANDLE, _STREAM, _NEW)),
        ("cache_swap_in", _call(_HANDLE, _HANDLE, _STREAM, _NEW)),
        ("swapped_query", _call(_HANDLE, POINTER(SwappedInfo))),
        ("swapped_destroy", _call(_HANDLE)),
    ]


STRUCTS = {
    "kvit_tensor": Tensor,
    "kvit_page_table": PageTable,
    "kvit_fault": Fault,
    "kvit_view_options": ViewOptions,
    "kvit_view_info": ViewInfo,
    "kvit_op_options": OpOptions,
    "kvit_op_info": OpInfo,
    "kvit_layer_spec": LayerSpec,
    "kvit_cache_options": CacheOptions,
    "kvit_cache_info": CacheInfo,
    "kvit_layer_info": LayerInfo,
    "kvit_attention_options": AttentionOptions,
    "kvit_rope_options": RopeOptions,
    "kvit_append_extras": AppendExtras,
    "kvit_sequence_info": SequenceInfo,
    "kvit_batch_options": BatchOptions,
    "kvit_batch_info": BatchInfo,
    "kvit_swapped_info": SwappedInfo,
    "kvit_api": Table,
}


class Refused(Exception):
    """A call that returned something else than KVIT_OK."""

    def __init__(self, status: int, message: str):
        super().__init__(f"{STATUSES[status]}: {message}")
        self.status, self.message = STATUSES[status], message


def tensor(source: Any) -> Tensor:
    """The kvit_tensor of anything that kvit.Tensor.wrap takes."""
    memory = kvit.Tensor.wrap(source)
    found = Tensor(memory.pointer, ndim=len(memory.shape), dtype=memory.dtype.code, readonly=memory.readonly)
    found.shape[: found.ndim], found.strides[: found.ndim] = memory.shape, memory.strides
    found.device_type, found.device_id = (1, 0) if memory.device == "host" else (2, int(memory.device[5:]))
    found.keeps = memory
    return found


def table(pages: Any, lengths: Any, indptr: Any = None) -> PageTable:
    """The kvit_page_table of three tensors."""
    pages, lengths, indptr = (None if x is None else tensor(x) for x in (pages, lengths, indptr))
    found = PageTable(
        ctypes.pointer(pages), None if indptr is None else ctypes.pointer(indptr), ctypes.pointer(lengths)
    )
    found.keeps = pages, lengths, indptr
    return found


def table_of(page_table: kvit.PageTable) -> PageTable:
    """The kvit_page_table of a kvit.PageTable."""
    return table(page_table.pages, page_table.lengths, page_table.indptr)


class Api:
    """The function table of the installed kvit: `api.attention(...)` raises Refused unless it returns KVIT_OK."""

    def __init__(self) -> None:
        from kvit._native import capi

        address = ctypes.pythonapi.PyCapsule_GetPointer
        address.restype, address.argtypes = c_void_p, [ctypes.py_object, c_char_p]
        self.table = Table.from_address(address(capi._C_API, b"kvit._native.capi._C_API"))

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.table, name)

        def call(*arguments: Any) -> None:
            status = function(*arguments)
            if status != 0:
                raise Refused(status, self.table.last_error().decode())

        return call

    def make(self, create: str, argument: Any) -> c_void_p:
        """A new handle from one of the functions whose last argument gets it."""
        handle = c_void_p()
        getattr(self, create)(argument, ctypes.byref(handle))
        return handle

    def ask(self, query: str, handle: c_void_p, kind: type) -> Any:
        """The answer of view_query, op_query, cache_query or sequence_query."""
        info = kind(ctypes.sizeof(kind))
        getattr(self, query)(handle, ctypes.byref(info))
        return info

    def view(self, view: kvit.CacheView) -> c_void_p:
        """The kvit_view of the memory of a kvit.CacheView."""
        given = {name: ctypes.pointer(tensor(getattr(view, name))) for name in ("k", "v")}
        for side, codec in zip("kv", view.codecs, strict=True):
            if codec.params:
                name = f"{side}_params" if codec.params == "pair" else f"{side}_scale"
                given[name] = ctypes.pointer(tensor(getattr(view, f"{side}_params")))
        given |= {"layout": {"NHD": NHD, "HND": HND}[view.layout], "dtype": view.dtype.code}
        return self.make("view_create", options(ViewOptions, **given))

    def op(self, view: c_void_p, kind: int = ATTENTION, **fields: Any) -> c_void_p:
        """A kvit_op."""
        return self.make("op_create", options(OpOptions, view=view, kind=kind, **fields))


def options(struct: type, /, **fields: Any) -> Any:
    """Options with their size, and these fields."""
    return struct(size=ctypes.sizeof(struct), **fields)


WORDLESS = ("internal error", "please report")


def say(api: Api, status: int) -> str:
    """The words of a refusal; fails where it has none that help."""
    assert 0 < status < len(STATUSES), f"status {status} is none of kvit_types.h"
    words = api.table.last_error().decode()
    assert words and not any(word in words for word in WORDLESS), f"{STATUSES[status]}: {words!r}"
    return words
