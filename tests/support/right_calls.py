"""Right arguments for every public class and function of kvit, made anew for each call."""

import numpy as np

import kvit
from support.caches import FLOAT16

PAGES, PAGE, HEADS, DIM = 4, 16, 2, 64


def pool():
    return np.zeros((PAGES, PAGE, HEADS, DIM), FLOAT16)


def rows(count, heads=HEADS):
    return np.zeros((count, heads, DIM), FLOAT16)


def of_layer():
    return dict(k=rows(2), v=rows(2), layer=0, q=None, q_out=None, rotate=True)


class Scene:
    """Right arguments for every call, made anew for each: some calls change what they are given."""

    def __init__(self):
        self.view = kvit.CacheView(pool(), pool())
        self.table = kvit.PageTable(np.zeros((2, 2), np.int32), lengths=np.ones(2, np.int32))
        self.cache = kvit.PagedCache(PAGES, PAGE, HEADS, DIM, dtype="float16", device="host")
        self.sequence = self.cache.sequence()
        self.sequence.append(rows(3), rows(3))
        self.stream = kvit.Stream("host")
        self.buffer = kvit.Buffer.empty((4,), "float32", "host")
        self.event = kvit.Event("host", timing=True)
        self.event.record(self.stream)
        self.blocks = dict(page_size=PAGE, kv_heads=HEADS, head_dim=DIM)
        self.memory = np.zeros((4, kvit.TurboMindBlocks.bytes_of_layer(PAGE, HEADS, DIM, "int8")), np.uint8)

        self.mixed = kvit.MixedCache(
            4, 4, HEADS, DIM, window=4, exact_pages=8, k="int8", v="int8", dtype="float16", device="host"
        )
        self.member = self.mixed.sequence()
        self.member.append(rows(14), rows(14))

    def mixed_batch(self):
        batch = kvit.MixedBatch(self.mixed, [self.member], 4, new_tokens=2)
        batch.step()
        return batch

    def graph(self):
        with kvit.Graph.capture(self.stream) as graph:
            self.buffer.fill_bytes(0, self.stream)
        return graph


# What is called, and with what it works: (callable, arguments), from a Scene. All of its parameters are named.
RIGHT = {
    "Append": lambda s: (kvit.Append, dict(view=s.view, rope=None, k_norm=None, q_norm=None, norm_eps=1e-6,
                                             norm_offset=0.0, launch="direct", faults=None)),
    "Append.__call__": lambda s: (
        kvit.Append(s.view).__call__,
        dict(k=rows(2), v=rows(2), view=s.view, table=s.table, query_indptr=np.array([0, 1, 2], np.int32), k_bias=None,
             v_bias=None, prefix_lengths=None, positions=None, q=None, q_bias=None, q_out=None, stream=s.stream),
    ),
    "Append.check": lambda s: (kvit.Append(s.view).check, dict(stream=s.stream)),
    "Attention": lambda s: (
        kvit.Attention,
        dict(view=s.view, query_heads=4, dtype="float16", scale=0.1, causal=True, tokens_per_sequence=1,
             workspace=None, kernel=None, split_tokens=None, reads_ahead=False, launch="direct", faults=None,
             window=None, chunk=None, softcap=None, sinks=None, alibi=None, temperature=None, spans=False, tree=False),
    ),
    "Attention.__call__": lambda s: (
        kvit.Attention(s.view, 4).__call__,
        dict(q=rows(2, 4), view=s.view, table=s.table, query_indptr=None, out=rows(2, 4),
             lse=np.zeros((2, 4), np.float32), spans=None, tree=None, stream=s.stream),
    ),
    "Attention.check": lambda s: (kvit.Attention(s.view, 4).check, dict(stream=s.stream)),
    "Attention.require_view": lambda s: (kvit.Attention(s.view, 4).require_view, dict(view=s.view)),
    "Attention.explain": lambda s: (kvit.Attention(s.view, 4).explain, dict(lengths=[3], gbps=10.0)),
    "Attention.explain of a batch": lambda s: (
        kvit.Attention(s.view, 4).explain, dict(lengths=None, batch=2, context=3, gbps=None)
    ),
    "Buffer.copy_from": lambda s: (s.buffer.copy_from, dict(source=np.zeros(4, np.float32), stream=s.stream)),
    "Buffer.empty": lambda s: (kvit.Buffer.empty, dict(shape=(4,), dtype="float32", device="host", stream=s.stream)),
    "Buffer.fill_bytes": lambda s: (s.buffer.fill_bytes, dict(value=0, stream=s.stream)),
    "Buffer.from_numpy": lambda s: (
        kvit.Buffer.from_numpy, dict(array=np.zeros(4, np.float32), device="host", stream=s.stream)
    ),
    "CacheView": lambda s: (
        kvit.CacheView,
        dict(k=pool(), v=pool(), layout="NHD", page_size=PAGE, kv="float16", k_params=None, v_params=None,
             k_scale=None, v_scale=None, dtype="float16", smoothing=None),
    ),
    "ConvertPages": lambda s: (kvit.ConvertPages, dict(source=s.view, target=kvit.CacheView(pool(), pool()),
                                                      faults=None)),
    "ConvertPages.__call__": lambda s: (
        kvit.ConvertPages(s.view, s.view).__call__,
        dict(source=s.view, target=kvit.CacheView(pool(), pool()), source_pages=np.zeros(1, np.int32),
             target_pages=np.zeros(1, np.int32), stream=s.stream),
    ),
    "ConvertPages.check": lambda s: (kvit.ConvertPages(s.view, s.view).check, dict(stream=s.stream)),
    "CopyPages": lambda s: (kvit.CopyPages, dict(view=s.view, faults=None)),
    "CopyPages.__call__": lambda s: (
        kvit.CopyPages(s.view).__call__,
        dict(view=s.view, source=np.zeros(1, np.int32), target=np.ones(1, np.int32), chains=None, stream=s.stream),
    ),
    "CopyPages.check": lambda s: (kvit.CopyPages(s.view).check, dict(stream=s.stream)),
    "Device.of": lambda s: (kvit.Device.of, dict(spec="host")),
    "Event": lambda s: (kvit.Event, dict(device="host", timing=False)),
    "Event.elapsed_ms": lambda s: (s.event.elapsed_ms, dict(end=s.event)),
    "Event.record": lambda s: (s.event.record, dict(stream=s.stream)),
    "Event.wait": lambda s: (s.event.wait, dict(stream=s.stream)),
    "Gather": lambda s: (kvit.Gather, dict(view=s.view, launch="direct", faults=None)),
    "Gather.__call__": lambda s: (
        kvit.Gather(s.view).__call__,
        dict(view=s.view, table=s.table, query_indptr=None, out=(rows(2), rows(2)), layout="NHD", stream=s.stream),
    ),
    "Gather.check": lambda s: (kvit.Gather(s.view).check, dict(stream=s.stream)),
    "Graph.capture": lambda s: (kvit.Graph.capture, dict(stream=s.stream)),
    "Graph.launch": lambda s: (s.graph().launch, dict(stream=s.stream)),
    "KeySmoothing": lambda s: (kvit.KeySmoothing, dict(mean=np.zeros((2, 64)), width=np.ones((2, 64)))),
    "KeySmoothing.measure": lambda s: (kvit.KeySmoothing.measure, dict(k=rows(2), q=rows(2, 4))),
    "MixedCache": lambda s: (
        kvit.MixedCache,
        dict(pages=2, page_size=4, kv_heads=2, head_dim=64, window=4, exact_pages=4, sinks=1, k="int8", v="int8",
             k_scale=None, v_scale=None, dtype="float16", layers=1, layout="HND", rope=None, smoothing=None,
             device="host"),
    ),
    "MixedCache.append": lambda s: (
        s.mixed.append,
        dict(seqs=[s.member], k=rows(2), v=rows(2), new_tokens=[2], q=None, q_out=None, rotate=True, stream=s.stream),
    ),
    "MixedCache.attention": lambda s: (
        s.mixed.attention,
        dict(q=rows(1, 4), seqs=[s.member], new_tokens=[1], layer=0, out=rows(1, 4), lse=np.zeros((1, 4), np.float32),
             return_lse=False, scale=0.1, stream=s.stream),
    ),
    "MixedCache.check": lambda s: (s.mixed.check, dict(stream=s.stream)),
    "MixedCache.gather": lambda s: (s.mixed.gather, dict(seqs=[s.member], layer=0, stream=s.stream)),
    "MixedCache.step": lambda s: (s.mixed.step, dict(seqs=[s.member], new_tokens=1, stream=s.stream)),
    "MixedBatch": lambda s: (
        kvit.MixedBatch,
        dict(cache=s.mixed, seqs=[s.member], query_heads=4, new_tokens=1, max_tokens=40, stream=s.stream),
    ),
    "MixedBatch.append": lambda s: (s.mixed_batch().append, of_layer()),
    "MixedBatch.attention": lambda s: (
        s.mixed_batch().attention,
        dict(q=rows(2, 4), layer=0, out=rows(2, 4), lse=np.zeros((2, 4), np.float32), scale=0.1),
    ),
    "MixedSequence.append": lambda s: (s.member.append, dict(k=rows(2), v=rows(2), stream=s.stream)),
    "MixedSequence.truncate": lambda s: (s.member.truncate, dict(length=1)),
    "MixedStep.append": lambda s: (s.mixed.step([s.member], 2).append, of_layer()),
    "LatentRows": lambda s: (kvit.LatentRows, dict(rows=np.zeros((2, 4, 656), np.uint8))),
    "PageTable": lambda s: (
        kvit.PageTable, dict(pages=np.zeros((2, 2), np.int32), lengths=np.ones(2, np.int32), indptr=None, indices=None)
    ),
    "PageTable of a list": lambda s: (
        kvit.PageTable,
        dict(pages=None, lengths=np.ones(2, np.int32), indptr=np.arange(3, dtype=np.int32),
             indices=np.zeros(2, np.int32)),
    ),
    "PagedCache": lambda s: (
        kvit.PagedCache,
        dict(pages=2, page_size=4, kv_heads=2, head_dim=64, dtype="float16", k="float16", v="int8", k_scale=None,
             v_scale=None, layout="HND", rope=None, device="host", layers=1, storage="layers", v_dim=64,
             shares_kv=False, smoothing=None),
    ),
    "PagedCache.append": lambda s: (
        s.cache.append,
        dict(seqs=[s.sequence], k=rows(2), v=rows(2), new_tokens=[2], q=None, q_out=None, rotate=True,
             positions=None, stream=s.stream),
    ),
    "Batch": lambda s: (kvit.Batch, dict(cache=s.cache, seqs=[s.sequence], max_tokens=8, stream=s.stream)),
    "Batch.step": lambda s: (kvit.Batch(s.cache, [s.sequence]).step, dict(new_tokens=1)),
    "Batch.use": lambda s: (kvit.Batch(s.cache, [s.sequence]).use, dict(seqs=[s.cache.sequence()])),
    "CacheLayer.append": lambda s: (
        s.cache.layer(0).append,
        dict(step=s.cache.step([s.sequence], 2), k=rows(2), v=rows(2), q=None, q_out=None, rotate=True,
             positions=None),
    ),
    "CacheLayer.gather": lambda s: (
        s.cache.layer(0).gather, dict(seqs=[s.sequence], out=(rows(3), rows(3)), layout="NHD", stream=s.stream)
    ),
    "PagePool.grow": lambda s: (s.cache.pool.grow, dict(seqs=[s.sequence], new_tokens=1)),
    "PagePool.pages_needed": lambda s: (s.cache.pool.pages_needed, dict(seqs=[s.sequence], new_tokens=1)),
    "PagePool.owners": lambda s: (s.cache.pool.owners, dict(page=0)),
    "PagedCache.add_layers": lambda s: (
        kvit.PagedCache(2, 4, 2, 64, dtype="float16", device="host").add_layers, dict(layers=1)
    ),
    "PagedCache.layer": lambda s: (s.cache.layer, dict(index=0)),
    "PagedCache.pages_needed": lambda s: (s.cache.pages_needed, dict(seqs=[s.sequence], new_tokens=1)),
    "PagedCache.step": lambda s: (s.cache.step, dict(seqs=[s.sequence], new_tokens=1, stream=s.stream)),
    "PagedCache.swap_in": lambda s: (
        s.cache.swap_in, dict(swapped=s.cache.swap_out(s.sequence), stream=s.stream)
    ),
    "PagedCache.swap_out": lambda s: (s.cache.swap_out, dict(seq=s.sequence, stream=s.stream)),
    "PagedCache.check": lambda s: (s.cache.check, dict(stream=s.stream)),
    "PagedCache.defragment": lambda s: (s.cache.defragment, dict(order="front", stream=s.stream)),
    "PagedCache.gather": lambda s: (
        s.cache.gather, dict(seqs=[s.sequence], out=(rows(3), rows(3)), layout="NHD", stream=s.stream)
    ),
    "PagedCache.requantise": lambda s: (
        s.cache.requantise, dict(k="int8", v="int8", k_scale=None, v_scale=None, stream=s.stream)
    ),
    "PagedCache.shift": lambda s: (
        s.cache.shift, dict(seqs=[s.sequence], drop=1, keep=1, rotate=False, stream=s.stream)
    ),
    "PagedCache.table": lambda s: (s.cache.table, dict(seqs=[s.sequence], stream=s.stream)),
    "Rope": lambda s: (
        kvit.Rope, dict(head_dim=64, base=1e4, rotary_dim=32, interleaved=False,
                        scaling={"rope_type": "linear", "factor": 2.0})
    ),
    "Rope.from_config": lambda s: (
        kvit.Rope.from_config,
        dict(config={"head_dim": 64, "rope_theta": 1e4, "num_attention_heads": 4, "hidden_size": 256},
             interleaved=None, length=None, layer_type=None, layer=None),
    ),
    "Sequence.append": lambda s: (s.sequence.append, dict(k=rows(2), v=rows(2), stream=s.stream)),
    "Sequence.shift": lambda s: (s.sequence.shift, dict(drop=1, keep=1, rotate=False, stream=s.stream)),
    "Sequence.truncate": lambda s: (s.sequence.truncate, dict(length=1)),
    "Shift": lambda s: (kvit.Shift, dict(view=s.view, rope=None, faults=None)),
    "Shift.__call__": lambda s: (
        kvit.Shift(s.view, kvit.Rope(64)).__call__,
        dict(view=s.view, table=s.table, by=1, first=0, source=None, stream=s.stream),
    ),
    "Shift.check": lambda s: (kvit.Shift(s.view, None).check, dict(stream=s.stream)),
    "SparseAttention": lambda s: (
        kvit.SparseAttention,
        dict(view=s.view, query_heads=4, entry_tokens=1, entries=2, queries=2, per_head=False, causal=True, scale=None,
             softcap=None, sinks=None, kernel=None, launch="direct", faults=None),
    ),
    "SparseAttention.__call__": lambda s: (
        kvit.SparseAttention(s.view, 4, entry_tokens=1, entries=2, queries=2).__call__,
        dict(q=rows(2, 4), view=s.view, table=s.table, indices=np.zeros((2, 1, 2), np.int32), query_indptr=None,
             out=rows(2, 4), lse=np.zeros((2, 4), np.float32), stream=s.stream),
    ),
    "SparseAttention.check": lambda s: (
        kvit.SparseAttention(s.view, 4, entry_tokens=1, entries=2, queries=2).check, dict(stream=s.stream)
    ),
    "Stream": lambda s: (kvit.Stream, dict(device="host")),
    "Stream.default": lambda s: (kvit.Stream.default, dict(device="host")),
    "Stream.wrap": lambda s: (kvit.Stream.wrap, dict(stream=s.stream, device="host")),
    "Tensor.from_pointer": lambda s: (
        kvit.Tensor.from_pointer,
        dict(pointer=4096, shape=(4,), dtype="float32", device="host", strides=(4,), readonly=False, owner=None),
    ),
    "Tensor.wrap": lambda s: (kvit.Tensor.wrap, dict(source=np.zeros(4, np.float32), dtype=None, stream=0)),
    "TurboMindBlocks": lambda s: (
        kvit.TurboMindBlocks,
        dict(memory=s.memory, **s.blocks, kv="int8", layer=0, offset=None, blocks=None, dtype="float16", k_scale=None,
             v_scale=None),
    ),
    "TurboMindBlocks.bytes_of_layer": lambda s: (kvit.TurboMindBlocks.bytes_of_layer, dict(**s.blocks, kv="int8")),
    "TurboMindBlocks.table": lambda s: (
        kvit.TurboMindBlocks(s.memory, **s.blocks, kv="int8").table,
        dict(cu_block_nums=np.array([0, 1], np.int32), lengths=np.ones(1, np.int32)),
    ),
    "VllmPages": lambda s: (
        kvit.VllmPages,
        dict(k=np.zeros((PAGES, HEADS, DIM // 8, PAGE, 8), FLOAT16), v=np.zeros((PAGES, HEADS, DIM, PAGE), FLOAT16),
             kv=None, k_params=None, v_params=None, k_scale=None, v_scale=None, dtype="float16"),
    ),
    "attention": lambda s: (
        kvit.attention,
        dict(q=rows(1, 4), cache=s.cache, seqs=[s.sequence], new_tokens=[1], out=rows(1, 4),
             lse=np.zeros((1, 4), np.float32), return_lse=False, causal=True, scale=0.1, window=None, chunk=None,
             softcap=None, sinks=None, alibi=None, temperature=None, spans=None, tree=None, shared_prefix=False,
             stream=s.stream),
    ),
    "merge_state": lambda s: (
        kvit.merge_state,
        dict(out_a=rows(2), lse_a=np.zeros((2, 2), np.float32), out_b=rows(2), lse_b=np.zeros((2, 2), np.float32),
             out=None, lse=None, stream=s.stream),
    ),
    "merge_states": lambda s: (
        kvit.merge_states,
        dict(outs=[rows(2)] * 2, lses=[np.zeros((2, 2), np.float32)] * 2, out=None, lse=None, stream=s.stream),
    ),
}  # fmt: skip
