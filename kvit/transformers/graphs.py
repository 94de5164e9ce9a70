"""Steps of one token through CUDA graphs: everything of a step has its place in memory, and a replay is one call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from types import TracebackType
from typing import Any

import torch
from transformers import PreTrainedModel

from kvit.cache.batch import Batch
from kvit.cache.paged_cache import PagedCache
from kvit.errors import KernelMissing, KvitError
from kvit.transformers.batch import CachedBatch
from kvit.transformers.cache import KvitCache
from kvit.transformers.padding import NewTokens
from kvit.transformers.state_layer import states_of
from kvit.transformers.static_step import CudaGraph, StaticStep, copied


class DecodeGraphs:
    """Makes steps of one token for each sequence static, so that one CUDA graph stands for all of them.

        cache = KvitCache(model.config, pages=512)
        with DecodeGraphs(model, cache) as graphs:
            model.generate(**tokens, past_key_values=cache)         # prompts as ever, each step a replay
        print(graphs.num_replays)

    model  with attn_implementation="kvit", on one device
    cache  what the model is given inside of the block, to generate() or by hand

    Inside of the block model.forward is this object's. A call with the cache and one real token for each of its
    sequences, behind a prompt, is a step. Everything else (prompts, several tokens at once, new tokens that are
    padding, other caches) runs as it does without. The first step of a kind runs as it is, the second is captured and
    replayed, and those behind it are replays. Another kind is another batch size, another set of arguments, and windows
    or chunks that the sequences have outgrown. Beams and a reset of the cache keep the graphs.

    A step reads input_ids, position_ids and other tensors from memory of this object, and what it returns is a copy.
    Weights must stay where they are. Without a GPU the same steps run in the same memory, without a graph.

    num_steps     steps so far; of these
    num_captures  were captured, and
    num_replays   were replays of a graph, those that were captured included

    Raises TypeError (no KvitCache), KernelMissing (layers whose queries choose). A step raises KvitError: the model is
    on several devices, an argument is neither a tensor nor hashable, position_ids are absent, or the step cannot be
    captured, which PyTorch's error explains.
    """

    def __init__(self, model: PreTrainedModel, cache: KvitCache):
        if not isinstance(cache, KvitCache):
            raise TypeError(f"cache is a {type(cache).__name__}; give the kvit.transformers.KvitCache of the model")
        if cache.indexed_layers or cache.compressed_layers:
            raise KernelMissing(
                "queries of the model choose what they attend to, among keys or entries that grow with every step: "
                "a graph repeats a step of one size. Generate without DecodeGraphs"
            )
        self.num_steps = self.num_captures = self.num_replays = 0
        self._model, self._cache = model, cache
        self._batch: CachedBatch = cache.batch
        self._table: Batch | None = None
        self._kinds: dict[Any, StaticStep] = {}
        self._memory: Any = None  # what graphs know the addresses of
        self._stream: Any = None  # torch.cuda.Stream of all steps
        self._pool: Any = None  # of memory that all graphs share
        self._plain: Callable[..., Any] | None = None
        self._replaced: Any = None  # what somebody else had put in place of the class's own forward, as accelerate does
        self._names: list[str] = []  # of forward's arguments

    def __enter__(self) -> DecodeGraphs:
        if self._plain is not None:
            raise KvitError("the block is open already; one DecodeGraphs serves one block at a time")
        self._plain, self._replaced = self._model.forward, vars(self._model).get("forward")
        self._names = list(inspect.signature(self._plain).parameters)

        @wraps(self._plain)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._forward(*args, **kwargs)

        self._model.forward = forward
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._replaced is None:
            del self._model.forward
        else:
            self._model.forward = self._replaced
        self._plain = self._replaced = self._table = self._memory = None
        self._kinds.clear()

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        tokens = self._tokens_of_step(given)
        if tokens is None:
            return self._plain(*args, **kwargs)
        tokens.check_past(self._batch.mask, self._batch.length)
        return self._step(given, tokens)

    def _tokens_of_step(self, given: dict[str, Any]) -> NewTokens | None:
        """The new tokens, if the call is a step: one real token of each sequence behind others. Waits for the GPU."""
        batch, mask = self._batch, given.get("attention_mask")
        new = next((x for x in map(given.get, ("input_ids", "inputs_embeds")) if isinstance(x, torch.Tensor)), None)
        if new is None or new.shape[:2] != (batch.size, 1) or not any(x is self._cache for x in given.values()):
            return None
        if batch.length == 0 or not (mask is None or isinstance(mask, torch.Tensor)):
            return None
        if mask is not None and mask.shape != (batch.size, batch.length + 1):
            return None  # attention says what is wrong
        # One number of the GPU first: the mask of a batch without padding need not come to the host.
        tokens = NewTokens(None if mask is None or mask.all() else mask, batch.size, 1)
        return tokens if tokens.index is None else None

    def _step(self, given: dict[str, Any], tokens: NewTokens) -> Any:
        tensors = {name: x for name, x in given.items() if isinstance(x, torch.Tensor) and name != "attention_mask"}
        if "position_ids" in self._names and "position_ids" not in tensors:
            raise KvitError(
                "a step of DecodeGraphs has no position_ids, and those that the model makes would stay in its graph; "
                "give them, as generate() does: position_ids=torch.full((batch, 1), cache.get_seq_length())"
            )
        others = {name: x for name, x in given.items() if name not in tensors and name != "attention_mask"}
        paged = self._cache.paged
        assert paged is not None, "a batch with tokens has pages"
        device = torch.device("cpu") if paged.device == "host" else torch.device(paged.device)
        with self._on_stream(device):
            static = self._static_of(self._table_of(paged), tensors, others, device)
            was_captured = static.is_captured
            with self._table.step(1) as step, self._batch.owned_pass(paged, step):
                output = static.run(tensors, lambda: self._new_graph(device), lambda: _kept_by(paged))
            self._batch.grow(1, tokens.mask)
        self.num_steps += 1
        self.num_captures += static.is_captured and not was_captured
        self.num_replays += static.is_captured
        return copied(output)

    def _table_of(self, paged: PagedCache) -> Batch:
        """The page table of the sequences, which stays where it is for as many sequences as there are."""
        sequences, table = self._batch.sequences[paged], self._table
        needed = sum(len(sequence) // paged.page_size + 1 for sequence in sequences)
        if table is None or table.cache is not paged or len(table) != len(sequences) or table.capacity < needed:
            table = self._table = Batch(paged, sequences, stream=self._stream)
        elif any(ours is not theirs for ours, theirs in zip(table.seqs, sequences, strict=True)):
            table.use(sequences)
        return table

    def _static_of(
        self, table: Batch, tensors: dict[str, torch.Tensor], others: dict[str, Any], device: torch.device
    ) -> StaticStep:
        """The step of this kind, from the one before or new. Raises KvitError (an argument that is not hashable)."""
        states = [state.data_ptr() for layer in self._cache.state_layers for state in states_of(layer)]
        memory = (table, tuple(table.cache.groups), states)
        if memory != self._memory:
            self._kinds.clear()
            self._memory = memory
        outgrown = frozenset(limit for limit in self._batch.limits if self._batch.length + 1 > limit)
        shapes = tuple((name, x.shape, x.dtype) for name, x in sorted(tensors.items()))
        said = tuple((name, x) for name, x in sorted(others.items()) if x is not self._cache)
        try:
            kind = (outgrown, shapes, said, torch.is_inference_mode_enabled())
            found = self._kinds.get(kind)
        except TypeError as error:
            names = [name for name, x in said if type(x).__hash__ is None]
            raise KvitError(
                f"a step of DecodeGraphs has {', '.join(names)}, which are neither tensors nor hashable and might "
                "change unseen; leave them out, or generate without DecodeGraphs"
            ) from error
        if found is None:
            found = self._kinds[kind] = StaticStep(partial(self._plain, **others), tensors, device)
        return found

    @contextmanager
    def _on_stream(self, device: torch.device) -> Iterator[None]:
        """PyTorch's current stream is one that graphs can be captured from; all that comes behind waits for it."""
        if device.type == "cpu":
            yield
            return
        if self._stream is None:
            self._stream, self._pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
        caller = torch.cuda.current_stream(device)
        self._stream.wait_stream(caller)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            caller.wait_stream(self._stream)

    def _new_graph(self, device: torch.device) -> CudaGraph | None:
        return None if device.type == "cpu" else CudaGraph(self._stream, self._pool)


def _kept_by(paged: PagedCache) -> list[Any]:
    """Operations whose workspaces calls use, and the memory of the layers."""
    return [(group, group.operations.kept) for group in paged.groups]
