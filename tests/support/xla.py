"""The other side of XLA's custom calls, in ctypes: a runtime that calls a handler as XLA does, without XLA."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_char_p, c_int, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from typing import Any

EXECUTE, BUFFER, STRING = 3, 1, 4
DTYPES = {"int8": 2, "int32": 4, "uint8": 6, "float16": 10, "float32": 11, "bfloat16": 16}
STREAM, ORDINAL = 0x500, 0  # what the runtime says of the GPU that a call runs on


class Version(Structure):
    _fields_ = [("size", c_size_t), ("extensions", c_void_p), ("major", c_int), ("minor", c_int)]


class Metadata(Structure):
    """Since version 0.2: before, the first field was not there, nor the last."""

    _fields_ = [("size", c_size_t), ("version", Version), ("traits", c_uint32), ("state_type", c_int64)]


class FirstMetadata(Structure):
    _fields_ = [("version", Version), ("traits", c_uint32)]


class MetadataExtension(Structure):
    _fields_ = [("size", c_size_t), ("type", c_int), ("next", c_void_p), ("metadata", c_void_p)]


class Error(Structure):
    _fields_ = [("size", c_size_t), ("extensions", c_void_p), ("message", c_char_p), ("code", c_int)]


class Answer(Structure):
    """Of questions for the stream, and for the ordinal: what comes back stands last."""

    _fields_ = [("size", c_size_t), ("extensions", c_void_p), ("context", c_void_p), ("value", c_void_p)]


class Buffer(Structure):
    _fields_ = [("size", c_size_t), ("extensions", c_void_p), ("dtype", c_int), ("data", c_void_p), ("rank", c_int64),
                ("shape", POINTER(c_int64))]  # fmt: skip


class Bytes(Structure):
    _fields_ = [("text", c_char_p), ("length", c_size_t)]


class Buffers(Structure):
    _fields_ = [("size", c_size_t), ("extensions", c_void_p), ("count", c_int64), ("types", POINTER(c_int)),
                ("items", POINTER(c_void_p))]  # fmt: skip


class Attributes(Structure):
    _fields_ = [("size", c_size_t), ("extensions", c_void_p), ("count", c_int64), ("types", POINTER(c_int)),
                ("names", POINTER(c_void_p)), ("items", POINTER(c_void_p))]  # fmt: skip


FUNCTION = ctypes.CFUNCTYPE(c_void_p, c_void_p)
_NAMES = ("error_create", "error_get_message", "error_destroy", "handler_register", "stream_get", "type_register",
          "context_get", "state_set", "state_get", "memory_allocate", "memory_free", "pool_schedule",
          "pool_num_threads", "future_create", "future_set_available", "future_set_error", "run_id_get",
          "ordinal_get")  # fmt: skip


class Api(Structure):
    _fields_ = [("size", c_size_t), ("extensions", c_void_p), ("version", Version), ("internal", c_void_p),
                *((name, FUNCTION) for name in _NAMES)]  # fmt: skip


class Call(Structure):
    _fields_ = [("size", c_size_t), ("extensions", c_void_p), ("api", POINTER(Api)), ("context", c_void_p),
                ("stage", c_int), ("arguments", Buffers), ("results", Buffers), ("attributes", Attributes),
                ("future", c_void_p)]  # fmt: skip


class Runtime:
    """Calls a handler in a capsule. Every struct has the size that XLA would give it.

    minor  version of the ABI that it says it is of
    """

    def __init__(self, capsule: Any, minor: int = 3):
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = c_void_p, [ctypes.py_object, c_char_p]
        self.handler = FUNCTION(pointer(capsule, b"xla._CUSTOM_CALL_TARGET"))
        self.error: tuple[str, int] | None = None
        self.version = Version(ctypes.sizeof(Version), None, 0, minor)
        functions = {"error_create": self._error, "stream_get": self._stream, "ordinal_get": self._ordinal}
        self._kept = {name: FUNCTION(function) for name, function in functions.items()}
        self.api = Api(size=ctypes.sizeof(Api), version=self.version, **self._kept)

    def _error(self, given: int) -> int:
        error = Error.from_address(given)
        self.error = error.message.decode(), error.code
        return 1  # any address but NULL

    def _stream(self, asked: int) -> None:
        Answer.from_address(asked).value = STREAM

    def _ordinal(self, asked: int) -> None:
        c_int32.from_address(asked + Answer.value.offset).value = ORDINAL

    def call(
        self,
        words: str,
        arguments: Sequence[tuple[int, tuple[int, ...], str]] = (),
        results: Sequence[tuple[int, tuple[int, ...], str]] = (),
        stage: int = EXECUTE,
    ) -> tuple[str, int] | None:
        """The error (words, code) of a call with arrays (address, shape, dtype); None for none."""
        text = words.encode()
        attribute = Bytes(text, len(text))
        attributes = Attributes(
            ctypes.sizeof(Attributes), None, 1, (c_int * 1)(STRING), None, (c_void_p * 1)(ctypes.addressof(attribute))
        )
        kept: list[Any] = []
        given, into = _buffers(arguments, kept), _buffers(results, kept)
        frame = Call(ctypes.sizeof(Call), None, ctypes.pointer(self.api), None, stage, given, into, attributes, None)
        self.error = None
        failed = self.handler(ctypes.addressof(frame))
        assert bool(failed) == (self.error is not None)
        return self.error

    def ask(self, metadata: Metadata | FirstMetadata) -> None:
        """Ask the handler what it is, as XLA does when it is registered."""
        extension = MetadataExtension(
            ctypes.sizeof(MetadataExtension), 1, None, ctypes.cast(ctypes.pointer(metadata), c_void_p)
        )
        frame = Call(ctypes.sizeof(Call), ctypes.addressof(extension), ctypes.pointer(self.api))
        assert not self.handler(ctypes.addressof(frame))


def _buffers(arrays: Sequence[tuple[int, tuple[int, ...], str]], kept: list[Any]) -> Buffers:
    items = (c_void_p * len(arrays))()
    for i, (address, shape, dtype) in enumerate(arrays):
        axes = (c_int64 * len(shape))(*shape)
        buffer = Buffer(ctypes.sizeof(Buffer), None, DTYPES.get(dtype, dtype), address, len(shape), axes)
        kept += [axes, buffer]
        items[i] = ctypes.addressof(buffer)
    types = (c_int * len(arrays))(*[BUFFER] * len(arrays))
    return Buffers(ctypes.sizeof(Buffers), None, len(arrays), types, items)
