"""The sequences of a KvitCache, which all its layers share, and the forward pass that they grow by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from kvit.cache.layer import CacheLayer
from kvit.cache.paged_cache import PagedCache
from kvit.cache.sequence import Sequence
from kvit.cache.step import Step
from kvit.errors import KernelMissing, KvitError, ShapeError
from kvit.transformers.padding import NewTokens
from kvit.transformers.pages import ModelPages


class Pass:
    """One forward pass: an open step in the pages of each device, until every layer has attended.

    new       tokens of each sequence, padding included
    tokens    which of them are real
    waiting   layers of the model that have not attended yet
    mask      that `tokens` was read from
    is_owned  somebody else ends the pass and has looked at its mask: layers ask nothing about theirs
    """

    def __init__(
        self, new: int, tokens: NewTokens, waiting: set[int], mask: torch.Tensor | None, *, is_owned: bool = False
    ):
        self.new, self.tokens, self.waiting, self.is_owned = new, tokens, waiting, is_owned
        self.steps: dict[PagedCache, Step] = {}
        self._masks = [mask]  # that were read, which waits for the GPU

    def tokens_of(self, mask: torch.Tensor | None, batch: int, new: int) -> NewTokens:
        """The new tokens that a layer was given: those of the pass. Raises ShapeError.

        Layers with and without a window get two masks, which say the same of padding.
        """
        has_same_shape = (batch, new) == (len(self.tokens.counts), self.new)
        if has_same_shape and (self.is_owned or any(mask is known for known in self._masks)):
            return self.tokens
        counts = NewTokens(mask, batch, new).counts
        self._masks.append(mask)
        if counts != self.tokens.counts or not has_same_shape:
            raise ShapeError(
                f"a layer has {new} new tokens of {batch} sequences, {counts} of them real, and the layers before it "
                f"{self.new} of {len(self.tokens.counts)}, {self.tokens.counts} of them real; give all layers the same"
            )
        return self.tokens


class CachedBatch:
    """The sequences of a batch, and what is the same for all layers: how long they are, and which tokens are real.

    pages    where K and V are
    layers   of the model, by their index, that store K and V
    limits   tokens of the windows and chunks of layers: attention is told of one when a sequence has outgrown it
    readers  layers that store none and attend to those of another layer
    blocks   whether queries of some layers choose blocks, which transformers counts from the padding of a sequence on

    A forward pass is whole or has not been: its first layer begins a step, and the sequences grow when every layer has
    attended. A pass that was interrupted leaves the sequences as they were.
    """

    def __init__(
        self,
        pages: ModelPages,
        layers: Iterable[int],
        limits: Iterable[int],
        readers: Iterable[int] = (),
        *,
        blocks: bool = False,
    ):
        self.pages = pages
        self.layers, self.limits, self.readers = frozenset(layers), set(limits), frozenset(readers)
        self.blocks = blocks
        self.size = 0  # sequences; 0 before the first pass
        self.length = 0  # tokens of each sequence, padding included: what transformers counts
        self.mask: torch.Tensor | None = None  # bool [size, length] in host memory; None without padding
        self.sequences: dict[PagedCache, list[Sequence]] = {}  # the same ones in the pages of each device
        self._pass: Pass | None = None
        self._given: int | None = None  # the layer that was given K and V last, until attention asks for it

    def give(self, index: int) -> None:
        """Note that a layer of the model has new K and V, which its attention shall ask for.

        Raises KernelMissing where the layer before it got some, and its attention has not asked.
        """
        before, self._given = self._given, index
        if before is not None and before == max((i for i in self.layers if i < index), default=None):
            self._given = None
            raise KernelMissing(
                f"layer {before} of the model had new K and V, and no attention of kvit's has asked for them before "
                f"layer {index} had its own: the model computes attention by itself. kvit.transformers.prepare(model) "
                "teaches BLOOM and MPT to ask; use another cache for other models"
            )

    def enter(self, layer: CacheLayer, size: int) -> None:
        """Have `size` sequences without tokens where a layer is, unless there are some."""
        if layer.cache not in self.sequences:
            self.sequences[layer.cache] = [layer.cache.sequence() for _ in range(size)]
            self.size = size

    def begin_layer(
        self, index: int, layer: CacheLayer, mask: torch.Tensor | None, new: int, stream: int | None
    ) -> tuple[Step, NewTokens]:
        """The open step that a layer of the model shall append to, and the new tokens; the first layer's begins it.

        Raises KvitError (the pass before this one ended early), ShapeError (the mask, other tokens than the layers
        before it), CacheFull.
        """
        self._given = None
        if self._pass is None or index not in self._pass.waiting:
            self._require_no_pass()
            tokens = NewTokens(mask, self.size, new)
            tokens.check_past(self.mask, self.length)
            if self.blocks:
                tokens.require_none_before()
            self._pass = Pass(new, tokens, {*self.layers, *self.readers}, mask)
        tokens = self._pass.tokens_of(mask, self.size, new)
        step = self._pass.steps.get(layer.cache)
        if step is None:
            step = layer.cache.step(self.sequences[layer.cache], tokens.counts, stream=stream)
            self._pass.steps[layer.cache] = step
        return step, tokens

    def begin_reader(self, index: int, layer: CacheLayer, new: int) -> tuple[Step, NewTokens]:
        """The open step in which a layer of the model shall read what `layer` holds, and the tokens that have queries.

        index  of the layer that reads
        new    positions of each sequence that have queries, the last ones: models leave out those that nobody asks for

        Raises KernelMissing (no pass in which `layer` has stored its tokens), ShapeError (more than are new).
        """
        now = self._pass
        if now is None or index not in now.waiting or layer.cache not in now.steps:
            raise KernelMissing(
                f"layer {index} attends to K and V of another layer, outside of the forward pass that stored them; "
                "use another attn_implementation for this model"
            )
        if new > now.new:
            raise ShapeError(f"layer {index} has queries of {new} tokens and the layers before it {now.new} new tokens")
        return now.steps[layer.cache], now.tokens.last(now.new, new)

    def end_layer(self, index: int) -> None:
        """Note that a layer has attended. The last one of a pass ends it: the sequences grow."""
        assert self._pass is not None, "begin_layer comes before end_layer"
        now = self._pass
        now.waiting.discard(index)
        if now.waiting or now.is_owned:
            return
        for step in now.steps.values():
            step.commit()
        self._pass = None
        self.grow(now.new, now.tokens.mask)

    @contextmanager
    def owned_pass(self, paged: PagedCache, step: Step) -> Iterator[None]:
        """A pass of one real token of each sequence, in a step of the caller's, who commits it and calls `grow`.

        Raises KvitError (the pass before this one ended early).
        """
        self._require_no_pass()
        self._pass = Pass(1, NewTokens(None, self.size, 1), {*self.layers, *self.readers}, None, is_owned=True)
        self._pass.steps[paged] = step
        try:
            yield
        finally:
            self._pass = None

    def grow(self, new: int, mask: torch.Tensor | None) -> None:
        """Count `new` more tokens of each sequence, which are in the pages; `mask` as in NewTokens."""
        self.length, self.mask = self.length + new, mask

    def drop_pass(self) -> None:
        """Forget a pass that has not ended. Its pages go back, and the sequences are what they were."""
        self._given = None
        now, self._pass = self._pass, None
        for step in () if now is None or now.is_owned else now.steps.values():
            step.close()

    def _require_no_pass(self) -> None:
        if self._pass is None:
            return
        missing = sorted(self._pass.waiting)
        self.drop_pass()
        raise KvitError(
            f"the last forward pass ended before layer{'s' * (len(missing) > 1)} {', '.join(map(str, missing))} "
            "attended, and its tokens are not in the cache: it was interrupted, or the model leaves out layers of its "
            "config. Repeat it, or reset() the cache"
        )

    def require_removable(self, tokens_to_remove: int) -> None:
        """Raise ShapeError unless `crop` could be given this."""
        if not -self.length <= tokens_to_remove <= 0:
            raise ShapeError(
                f"crop({tokens_to_remove}) of {self.length} tokens; give minus the number of tokens to remove, "
                f"0 to {-self.length}"
            )

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -tokens_to_remove tokens of each sequence, padding included; give pages back."""
        self.drop_pass()
        kept = self.length + tokens_to_remove
        for sequences in self.sequences.values():
            for i, sequence in enumerate(sequences):
                dropped = -tokens_to_remove if self.mask is None else int(self.mask[i, kept:].sum())
                sequence.truncate(len(sequence) - dropped)
        mask = None if self.mask is None else self.mask[:, :kept]
        self.length, self.mask = kept, None if mask is None or mask.all() else mask

    def reset(self) -> None:
        """Forget all sequences; the pages stay, for a batch of any size."""
        self.drop_pass()
        old = self.sequences
        self.sequences, self.size, self.length, self.mask = {}, 0, 0, None
        _free(old)

    def select(self, places: list[int]) -> None:
        """Have forks of the sequences at these places, in this order: no token moves until one of the forks grows."""
        self.drop_pass()
        if not self.sequences:
            return  # as transformers' own caches do
        old, mask = self.sequences, None if self.mask is None else self.mask[places]
        self.sequences = {paged: [own[place].fork() for place in places] for paged, own in old.items()}
        self.size, self.mask = len(places), None if mask is None or mask.all() else mask
        _free(old)

    def fork(self) -> CachedBatch:
        """The same tokens in the same pages, if there are some yet, for another cache."""
        pages = self.pages
        if not pages.caches:
            pages = ModelPages(pages.config, pages.options, pages.scales)
        twin = CachedBatch(pages, self.layers, self.limits, self.readers, blocks=self.blocks)
        twin.sequences = {paged: [sequence.fork() for sequence in own] for paged, own in self.sequences.items()}
        twin.size, twin.length, twin.mask = self.size, self.length, self.mask
        return twin


def _free(sequences: dict[PagedCache, list[Sequence]]) -> None:
    """Give the pages back now: a kvit.Batch may refer to these sequences until it gets others."""
    for own in sequences.values():
        for sequence in own:
            sequence.free()
