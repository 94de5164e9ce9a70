"""A server in small: 64 chats through one many-layer cache, in any order, give what each would give alone."""

from __future__ import annotations

import numpy as np
import pytest
from backends import ReferenceAttention
from model import Config, Decoder, rotate
from test_tinylm_model import random_weights

import kvit

CONFIG = Config(width=48, layers=2, query_heads=4, kv_heads=2, head_dim=64, ffn_width=40, context=64)
CHATS, PREFIXES, NEW_TOKENS, CHUNK = 64, 5, 6, 7


class Chat:
    """A text, of which the cache holds the first `stored` tokens: in pages, or in host memory."""

    def __init__(self, text, wanted, seq):
        self.text, self.wanted, self.seq, self.swapped = list(text), wanted, seq, None
        self.prompt = len(self.text)

    @property
    def stored(self):
        return len(self.seq) if self.swapped is None else len(self.swapped)

    @property
    def is_done(self):
        return len(self.text) == self.wanted


class Server:
    """Takes steps of some of its chats, chunks of prompts beside single tokens, in a cache too small for all."""

    def __init__(self, rng, model, pages, device):
        self.rng, self.model = rng, model
        self.cache = kvit.PagedCache(
            pages, 4, CONFIG.kv_heads, CONFIG.head_dim, layers=CONFIG.layers, dtype="float16", device=device
        )
        self.chats: list[Chat] = []
        self.counts = dict.fromkeys(("full", "swapped", "forgotten", "truncated", "forked", "mixed"), 0)

    def place(self, x):
        return kvit.Buffer.from_numpy(np.ascontiguousarray(x, np.float16), self.cache.device)

    def step(self, chats, counts):
        """Run the next tokens of each chat through the model; returns the logits of each chat's last one."""
        model = self.model
        starts = [chat.stored for chat in chats]
        tokens = np.concatenate([chat.text[at : at + n] for chat, at, n in zip(chats, starts, counts, strict=True)])
        positions = np.concatenate([np.arange(at, at + n) for at, n in zip(starts, counts, strict=True)])
        cos, sin = model._cos[positions, None], model._sin[positions, None]
        with self.cache.step([chat.seq for chat in chats], counts) as step:

            def attend(layer, q, k, v):
                q, k = rotate(q, cos, sin), rotate(k, cos, sin)
                place = self.cache.layer(layer)
                place.append(step, self.place(k), self.place(v))
                return kvit.attention(self.place(q), place, step).numpy().astype(np.float32)

            logits = model.forward(tokens.astype(int), None, attend)  # which turns q and k itself
        self.cache.check()
        return logits[np.cumsum(counts) - 1]

    def make_room(self, needed):
        """Swap out or forget chats until so many pages are free, or nobody is left."""
        for i in self.rng.permutation(len(self.chats)):
            chat = self.chats[i]
            if self.cache.num_free_pages >= needed:
                return
            if chat.swapped is None and chat.stored:
                if self.rng.integers(2):
                    chat.swapped = self.cache.swap_out(chat.seq)
                    chat.seq.free()
                    self.counts["swapped"] += 1
                else:
                    chat.seq.truncate(0)  # its text is computed anew
                    self.counts["forgotten"] += 1

    def turn(self):
        """A step of some chats that are not done, whatever has to go for it."""
        waiting = [chat for chat in self.chats if not chat.is_done]
        chosen = [waiting[i] for i in self.rng.permutation(len(waiting))[: int(self.rng.integers(1, 25))]]
        ready = []
        for chat in chosen:
            if chat.swapped is not None:
                try:
                    chat.seq, chat.swapped = self.cache.swap_in(chat.swapped), None
                except kvit.CacheFull:
                    continue
            elif chat.stored > chat.prompt and self.rng.integers(8) == 0:
                chat.seq.truncate(chat.stored - 1)  # a guess that was wrong: the token comes again
                self.counts["truncated"] += 1
            ready.append(chat)
        counts = [int(min(len(chat.text) - chat.stored, self.rng.integers(1, CHUNK + 1))) for chat in ready]
        needed = self.cache.pages_needed([chat.seq for chat in ready], counts)
        if needed > self.cache.num_free_pages:
            self.counts["full"] += 1
            with pytest.raises(kvit.CacheFull):
                self.cache.step([chat.seq for chat in ready], counts)
            self.make_room(needed + 8)
            return
        if not ready:
            self.make_room(16)
            return
        self.counts["mixed"] += len(set(counts)) > 1
        for chat, logits in zip(ready, self.step(ready, counts), strict=True):
            if chat.stored == len(chat.text) and not chat.is_done:
                chat.text.append(int(np.argmax(logits)))


def test_64_chats_in_one_cache_give_the_tokens_of_each_alone(rng, device):
    model = Decoder(CONFIG, random_weights(CONFIG, rng))
    server = Server(rng, model, 170, device)
    # Prompts begin in five ways, and a chat is a fork of the prompt's first part: that lies in the cache once.
    prefixes = [Chat(rng.integers(1, 256, int(n)), 99, server.cache.sequence()) for n in rng.integers(9, 18, PREFIXES)]
    for prefix in prefixes:
        server.step([prefix], [len(prefix.text)])
    assert server.cache.num_free_pages == 170 - sum(-(-len(prefix.text) // 4) for prefix in prefixes)
    for i in range(CHATS - 8):
        prefix = prefixes[i % PREFIXES]
        text = [*prefix.text, *rng.integers(1, 256, int(rng.integers(1, 12)))]
        server.chats.append(Chat(text, len(text) + NEW_TOKENS, prefix.seq.fork()))
        server.counts["forked"] += 1
    turns = 0
    while not all(chat.is_done for chat in server.chats):
        server.turn()
        turns += 1
        if turns in range(20, 36, 2):  # a user asks the same again, from the middle of a chat on
            chat = next(chat for chat in server.chats if chat.swapped is None and chat.stored)
            twin = Chat([*chat.text[: chat.stored], int(rng.integers(1, 256))], 0, chat.seq.fork())
            twin.wanted = min(twin.prompt + NEW_TOKENS, CONFIG.context)
            server.chats.append(twin)
        assert turns < 3000
    assert len(server.chats) == CHATS and min(server.counts.values()) > 0, server.counts

    same = total = 0
    for chat in server.chats:
        alone = model.forward(np.array(chat.text[:-1]), 0, ReferenceAttention(CONFIG))
        for at in range(chat.prompt, len(chat.text)):
            logits, token = alone[at - 1], chat.text[at]
            assert logits[token] >= logits.max() - 0.02  # two that are equal but for rounding may change places
            same, total = same + (int(np.argmax(logits)) == token), total + 1
    assert total >= 350 and same >= 0.99 * total

    for chat in [*server.chats, *prefixes]:
        chat.seq.free()
    assert server.cache.num_free_pages == 170 and server.cache.pool.all_pages() == []
