"""Ways to store K and V in few bits, as what they leave of the numbers: encode and decode at once, in PyTorch.

A setting is written as words joined by +, the number format first: "int4", "int4+hadamard", "int2+group32+clip".

    int2 .. int8    codes between least and greatest of a group, with (scale, zero) in 16 bits: kvit.reference's
    sym2 .. sym8    codes around 0: x = scale * (code - (2^bits - 1) / 2), scale alone in 16 bits
    nvfp4, mxfp4    e2m1 in blocks of 16 with an e4m3 scale and one of the tensor; of 32 with a power of two
    16              as they are
    groupN          parameters for each N channels, instead of each row
    tileN           parameters for each channel of N tokens (KIVI); a tile that is not full stays in 16 bits
    clip, search    range narrowed by CLIPS; by what leaves the least squared error
    bf16            parameters in bfloat16, instead of float16
    hadamard, hadamardN, signs     rotation of each row, or in blocks of N; with random signs before it
    mean            the mean of each channel in a calibration text is taken away
    norm            each channel is divided by its standard deviation in that text
    normhalf, normq     by the root of it; by the root of its quotient over q's
    pair            what norms divide by is the same for both channels of a rotary pair, so that weights can do it
    matrix          rows are multiplied by a symmetric matrix of that text: of all, the one by which equal errors of
                    what is stored do the least harm to q . k. A bound on what the others can reach
    after           mean and norm come after the rotation instead of before it
    tilenorm        each channel is divided by its standard deviation over 128 tokens, stored in 16 bits (KVarN)
"""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

import torch
from torch import Tensor

CLIPS = {2: 0.65, 3: 0.9, 4: 0.95}
"""Of the range that a row needs, what clip keeps: near the best for normal numbers, of which rows of 64 reach +-2.4."""
NORM_TILE = 128  # tokens
STATIC = {"mean", "norm", "normhalf", "normq", "matrix"}  # of the calibration text
WORDS = STATIC | {"clip", "search", "bf16", "signs", "pair", "after", "tilenorm"}


class Statistics(NamedTuple):
    """Of one layer's K or V in the calibration text."""

    mean: Tensor  # [heads, 1, head_dim]
    deviation: Tensor  # [heads, 1, head_dim] standard
    largest: float  # absolute value
    q_deviation: Tensor  # [heads, 1, head_dim] of the queries of each KV head's group, root mean square
    matrix: Tensor  # [heads, head_dim, head_dim]

    @classmethod
    def of(cls, rows: Tensor, queries: Tensor | None = None) -> Statistics:
        """Of rows [heads, tokens, head_dim] and the queries [heads, any, head_dim] that meet them; none meet V."""
        mean, count = rows.mean(1, keepdim=True), rows.shape[1]
        channels = torch.eye(rows.shape[2]).expand(len(rows), -1, -1)
        own = (rows - mean).mT @ (rows - mean) / count
        of_queries = channels if queries is None else queries.mT @ queries / queries.shape[1]
        deviation, loud = (x.diagonal(dim1=1, dim2=2)[:, None].clamp(min=1e-8).sqrt() for x in (own, of_queries))
        # tr(M^-1 Q) tr(M K), the error of q . k times the range of A k where A^T A = M, is least at the geometric mean
        # of K^-1 and Q. A little of the identity keeps both away from 0.
        own, of_queries = (
            x + 1e-3 * x.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * channels for x in (own, of_queries)
        )
        root, inverse = power(own, 0.5), power(own, -0.5)
        best = inverse @ power(root @ of_queries @ root, 0.5) @ inverse
        return cls(mean, deviation, float(rows.abs().max()), loud, power(best, 0.5))


@dataclasses.dataclass(frozen=True)
class Setting:
    """How K or V is stored; the module says what the words mean."""

    text: str
    form: str  # int, sym, nvfp4, mxfp4 or 16
    bits: int
    group: int = 0  # channels of one set of parameters; 0: of a row
    tile: int = 0  # tokens of one set of parameters of a channel; 0: parameters are of a row
    block: int | None = None  # channels of a rotation; 0: a row; None: no rotation
    words: frozenset[str] = frozenset()

    @classmethod
    def of(cls, text: str) -> Setting:
        """Read a setting. Raises ValueError for words that are none."""
        first, *rest = text.split("+")
        form = re.fullmatch(r"(int|sym)([2-8])|nvfp4|mxfp4|16", first)
        numbers, words = {}, set()
        for word in rest:
            sized = re.fullmatch(r"(group|tile)(\d+)|(hadamard)(\d*)", word)
            if sized:
                name, size = sized[1] or sized[3], sized[2] or sized[4] or 0
                numbers["block" if name == "hadamard" else name] = int(size)
            elif word in WORDS:
                words.add(word)
            else:
                form = None
        if form is None:
            raise ValueError(f"unknown setting {text!r}; one is, for example, int4+hadamard or sym2+group32+clip")
        kind, bits = (form[1], int(form[2])) if form[1] else (first, 16 if first == "16" else 4)
        return cls(text, kind, bits, words=frozenset(words), **numbers)

    @property
    def tail(self) -> int:
        """Tokens of a tile that stay in 16 bits until it is full; 1: none."""
        return max(self.tile, NORM_TILE if "tilenorm" in self.words else 1)

    def bits_per_value(self, head_dim: int) -> float:
        """Bits of a channel of a token, parameters included; those that all tokens share weigh nothing."""
        params = {"int": 32, "sym": 16, "nvfp4": 8, "mxfp4": 8, "16": 0}[self.form]
        group = {"nvfp4": 16, "mxfp4": 32}.get(self.form, self.tile or self.group or head_dim)
        return self.bits + params / group + (16 / NORM_TILE if "tilenorm" in self.words else 0)

    def stored(self, x: Tensor, facts: Statistics | None = None) -> Tensor:
        """What decoding gives for rows x [..., heads, tokens, head_dim], float32 that float16 can hold.

        facts   of the calibration text; mean, the norms and nvfp4 want them
        Tokens of a tile that is not full come back as they are.
        """
        if self.form == "16":
            return x
        full = x.shape[-2] // self.tail * self.tail
        if not full:
            return x
        rows, rest = x[..., :full, :], x[..., full:, :]
        turn = None if self.block is None else rotation(self.block, x.shape[-1], "signs" in self.words)
        before, behind = (turn, None) if "after" in self.words else (None, turn)
        shift, width = self._normal(rows, facts, before)
        weighting = facts.matrix if "matrix" in self.words else None
        moved = times(times((times(rows, before) - shift) / width, weighting), behind)
        found = self._coded(moved, facts)
        found = times(times(found, behind, -1), weighting, -1) * width + shift
        found = times(found, before, -1)
        return torch.cat([found, rest], dim=-2)

    def _normal(self, rows: Tensor, facts: Statistics | None, turn: Tensor | None) -> tuple[Tensor | float, ...]:
        """What is taken away from every channel of rows that were rotated by `turn`, and what it is then divided by."""
        if "tilenorm" in self.words:
            tiles = times(rows, turn).unflatten(-2, (-1, NORM_TILE))
            width = tiles.std(-2, correction=0, keepdim=True).clamp(min=1e-4).half().float()
            return 0.0, width.expand(tiles.shape).flatten(-3, -2)
        names = self.words & STATIC
        if not names:
            return 0.0, 1.0
        if facts is None:
            raise ValueError(f"{self.text} needs the statistics of a calibration text")
        mean, width = facts.mean, facts.deviation
        if turn is not None:  # as if channels were independent
            mean, width = mean @ turn, (width**2 @ turn**2).sqrt()
        if "normhalf" in names:
            width = width.sqrt()
        elif "normq" in names:
            width = (width / facts.q_deviation).sqrt()
        elif "norm" not in names:
            width = torch.ones(1)
        if "pair" in self.words and width.shape[-1] > 1:
            both = width.unflatten(-1, (2, -1)).square().mean(-2).sqrt()
            width = torch.cat([both, both], dim=-1)
        return (mean if "mean" in names else 0.0), width

    def _coded(self, rows: Tensor, facts: Statistics | None) -> Tensor:
        if self.form == "nvfp4":
            # The largest block scale, 448 in e4m3, serves the largest number, with room for twice of it.
            tensor_scale = 2 * (facts.largest if facts else float(rows.abs().max())) / (6 * 448)
            groups = rows.unflatten(-1, (-1, 16))
            wanted = groups.abs().amax(-1, keepdim=True) / 6 / tensor_scale
            scale = wanted.clamp(max=448).to(torch.float8_e4m3fn).float() * tensor_scale
            return (e2m1(groups / scale.clamp(min=1e-30)) * scale).flatten(-2)
        if self.form == "mxfp4":
            groups = rows.unflatten(-1, (-1, 32))
            scale = torch.exp2(groups.abs().amax(-1, keepdim=True).clamp(min=2.0**-120).log2().floor() - 2)
            return (e2m1(groups / scale) * scale).flatten(-2)
        if self.tile:
            tiles = rows.unflatten(-2, (-1, self.tile)).transpose(-1, -2)
            return self._integers(tiles).transpose(-1, -2).flatten(-3, -2)
        return self._integers(rows.unflatten(-1, (-1, self.group or rows.shape[-1]))).flatten(-2)

    def _integers(self, groups: Tensor) -> Tensor:
        """Groups [..., numbers], each with parameters of its own."""
        if "search" in self.words:
            tried = torch.stack([self._clipped(groups, 1 - i / 16) for i in range(11)])
            best = (tried - groups).square().sum(-1, keepdim=True).argmin(0, keepdim=True)
            return tried.take_along_dim(best, 0)[0]
        return self._clipped(groups, CLIPS.get(self.bits, 1.0) if "clip" in self.words else 1.0)

    def _clipped(self, groups: Tensor, kept: float) -> Tensor:
        dtype = torch.bfloat16 if "bf16" in self.words else torch.float16
        top = 2**self.bits - 1
        if self.form == "sym":
            lo = None
            span = 2 * groups.abs().amax(-1, keepdim=True) * kept
        else:
            lo, hi = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
            span = hi - lo
            if kept != 1:
                lo, span = lo + span * ((1 - kept) / 2), span * kept
        scale = (span / top).to(dtype).float()
        scale = torch.where(scale < 2.0**-126, torch.finfo(dtype).smallest_normal, scale)
        zero = -scale * (top / 2) if lo is None else lo.to(dtype).float()
        codes = ((groups - zero) * (1 / scale)).round_().clamp_(0, top)
        return codes.mul_(scale).add_(zero)


def times(x: Tensor, matrix: Tensor | None, exponent: int = 1) -> Tensor:
    """x by a matrix, or by its inverse; x where there is none."""
    return x if matrix is None else x @ (matrix if exponent == 1 else torch.linalg.inv(matrix))


def power(matrix: Tensor, exponent: float) -> Tensor:
    """Powers of symmetric matrices [..., n, n] whose eigenvalues are above 0."""
    values, vectors = torch.linalg.eigh(matrix.double())
    return (vectors * values.clamp(min=1e-12)[..., None, :] ** exponent @ vectors.mT).float()


def e2m1(x: Tensor) -> Tensor:
    """The nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives, ties to even, as OCP's MX defines it."""
    size = x.abs().clamp(max=6)
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return torch.copysign((size / step).round() * step, x)


def rotation(block: int, channels: int, signs: bool = False) -> Tensor:
    """The orthogonal matrix [channels, channels] that rows are multiplied by: Hadamard's, in blocks.

    block   channels, a power of two; 0: all
    signs   rows change signs first, at random but always alike
    """
    size = block or channels
    if size & (size - 1) or channels % size:
        raise ValueError(f"a rotation of {size} channels; give a power of two that divides {channels}")
    one = torch.ones(1, 1)
    while len(one) < size:
        one = torch.cat([torch.cat([one, one], 1), torch.cat([one, -one], 1)])
    matrix = torch.block_diag(*[one / size**0.5] * (channels // size))
    if signs:
        flips = torch.randint(0, 2, (channels, 1), generator=torch.Generator().manual_seed(1)) * 2.0 - 1
        matrix = flips * matrix
    return matrix
