"""kvit in Hugging Face transformers: attn_implementation="kvit", with K and V in kvit's pages.

Importing this package registers the implementation. It needs PyTorch and transformers (pip install
'kvit[transformers]'); `import kvit` alone imports neither.
"""

from transformers import AttentionInterface, AttentionMaskInterface

from kvit.transformers.assistant import AssistantCache
from kvit.transformers.attention import NAME, attend
from kvit.transformers.cache import KvitCache, KvitLayer
from kvit.transformers.graphs import DecodeGraphs
from kvit.transformers.padding import padding_mask
from kvit.transformers.prepare import prepare

AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, padding_mask)

__all__ = ["AssistantCache", "DecodeGraphs", "KvitCache", "KvitLayer", "prepare"]
