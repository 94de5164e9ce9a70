"""The structs of kernels/abi/probe_params.h that a probe packs, field for field."""

from __future__ import annotations

import ctypes
from ctypes import c_int16, c_int32, c_int64, c_uint8, c_void_p

NUM_POOLS = 4  # K, V, K parameters, V parameters


class KvitPool(ctypes.Structure):
    _fields_ = [("base", c_void_p), ("page_stride", c_int64), ("token_stride", c_int64), ("head_stride", c_int64)]


class KvitCache(ctypes.Structure):
    _fields_ = [
        ("pool", KvitPool * NUM_POOLS),
        *((name, c_int32) for name in ("num_pages", "page_size", "num_kv_heads")),
        *((name, c_int16) for name in ("k_dim", "v_dim")),
        *((name, c_int32) for name in ("k_hadamard", "v_hadamard")),
        ("blocks", c_void_p),
    ]


class KvitPageTable(ctypes.Structure):
    _fields_ = [
        ("pages", c_void_p),
        ("indptr", c_void_p),
        ("lengths", c_void_p),
        ("row_stride", c_int64),
        ("num_sequences", c_int32),
        ("max_pages", c_int32),
    ]


class KvitTensorMap(ctypes.Structure):
    _fields_ = [("bytes", c_uint8 * 128)]


class KvitProbeParams(ctypes.Structure):
    _fields_ = [
        ("cache", KvitCache),
        ("table", KvitPageTable),
        ("shared_image", c_void_p),
        ("fragments", c_void_p),
        ("fault", c_void_p),
        *((name, c_int32) for name in ("sequence", "head", "tile", "max_s", "s_begin", "s_count", "stage", "advances")),
        ("box_tokens", c_int32),
        ("reserved", c_int32 * 15),
        ("k_map", KvitTensorMap),
        ("v_map", KvitTensorMap),
    ]
