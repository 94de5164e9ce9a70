"""The definition of what kvit computes: numpy and the types of ml_dtypes only, float64 inside, written to be read."""

from .attention import State, attention, merge_state, merge_states
from .cache import Cache, Fault, Pool, Table
from .codec import Codec, Encoded
from .codecs import CODECS, codec_of
from .hadamard import hadamard
from .int4 import pack_int4, unpack_int4
from .latent import LATENT_ROWS, LatentRow, decode_latent, encode_latent, read_latent, write_latent
from .layouts import from_vllm, to_vllm, turbomind_rows
from .mask import KeyRange, Seen, seen_keys, visible_keys
from .norm import RowNorm, normalise
from .paged import append, convert_pages, copy_pages, gather, paged_attention, token_positions, token_ranges
from .pair import PAIRS, Pair
from .rope import Rotation, biased, cosine_and_sine, rotate
from .rounding import rounded
from .shift import shift
from .smoothing import Smoothing
from .sparse import chosen_keys, sparse_attention

__all__ = [
    "CODECS",
    "LATENT_ROWS",
    "PAIRS",
    "Cache",
    "Codec",
    "Encoded",
    "Fault",
    "KeyRange",
    "LatentRow",
    "Pair",
    "Pool",
    "Rotation",
    "RowNorm",
    "Seen",
    "Smoothing",
    "State",
    "Table",
    "append",
    "attention",
    "biased",
    "chosen_keys",
    "codec_of",
    "convert_pages",
    "copy_pages",
    "cosine_and_sine",
    "decode_latent",
    "encode_latent",
    "from_vllm",
    "gather",
    "hadamard",
    "merge_state",
    "merge_states",
    "normalise",
    "pack_int4",
    "paged_attention",
    "read_latent",
    "rotate",
    "rounded",
    "seen_keys",
    "shift",
    "sparse_attention",
    "to_vllm",
    "token_positions",
    "token_ranges",
    "turbomind_rows",
    "unpack_int4",
    "visible_keys",
    "write_latent",
]
