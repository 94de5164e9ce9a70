"""examples/llm/simulated_codecs.py against kvit.reference and ml_dtypes; codecs_study.py against the model in numpy."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
import scoring
from model import Decoder

for _library in ("gguf", "jinja2", "tiktoken", "tqdm", "torch"):
    pytest.importorskip(_library, reason=f"needs {_library}, of pip install '.[llm]' or pip install torch")

import chat  # noqa: E402
import codecs_study  # noqa: E402
import small_gguf  # noqa: E402
import torch  # noqa: E402
from codecs_study import Pair  # noqa: E402
from simulated_codecs import NORM_TILE, WORDS, Setting, Statistics, e2m1, rotation  # noqa: E402

from kvit.reference import Pair as ReferencePair  # noqa: E402
from kvit.reference.codecs import Integer  # noqa: E402

TEXT = "hello, he said. well, hell is where the hello is; 12 of them, or 34? " * 12
HEADS, TOKENS, CHANNELS = 2, 300, 64  # two whole tiles of 128, and a part of one
WIDE = 9  # a channel whose numbers are 20 times larger, as keys of real models have


@pytest.fixture
def rows(rng) -> torch.Tensor:
    x = rng.normal(size=(HEADS, TOKENS, CHANNELS))
    x[..., WIDE] *= 20
    return torch.from_numpy(x.astype(np.float16).astype(np.float32))


def statistics_of(rows: torch.Tensor) -> Statistics:
    return Statistics.of(rows, rows.flip(2) / 2)  # queries with a wide channel of their own


def reference(rows: torch.Tensor, bits: int, dtype=np.float16) -> np.ndarray:
    codec = Integer(f"int{bits}", bits)
    return codec.decode(*codec.encode(rows.numpy().astype(dtype)), np.float32)


@pytest.mark.parametrize("bits", range(2, 9))
def test_integers_are_the_reference_s_bit_for_bit(rows, bits):
    rows[0, 0] = 3.0  # a constant row, whose scale the reference does not let be 0
    np.testing.assert_array_equal(Setting.of(f"int{bits}").stored(rows).numpy(), reference(rows, bits))


def test_parameters_in_bfloat16_are_the_reference_s_of_such_rows(rows):
    rows = rows.bfloat16().float()
    found = Setting.of("int4+bf16").stored(rows).numpy()
    np.testing.assert_array_equal(found, reference(rows, 4, ml_dtypes.bfloat16))
    assert (found != Setting.of("int4").stored(rows).numpy()).any()


def test_groups_are_rows_of_their_own(rows):
    expected = reference(rows.unflatten(-1, (-1, 32)), 4).reshape(rows.shape)
    np.testing.assert_array_equal(Setting.of("int4+group32").stored(rows).numpy(), expected)


def test_tiles_are_rows_across_tokens_and_the_last_tokens_stay(rows):
    found = Setting.of("int4+tile128").stored(rows).numpy()
    for tile in (slice(0, 128), slice(128, 256)):
        expected = reference(rows[:, tile].mT.contiguous(), 4).swapaxes(1, 2)
        np.testing.assert_array_equal(found[:, tile], expected)
    np.testing.assert_array_equal(found[:, 256:], rows[:, 256:])
    assert Setting.of("int4+tile128").stored(rows[:, :100]) is not None  # no tile is full


@pytest.mark.parametrize("bits", (2, 3, 4))
def test_symmetric_codes_are_the_same_on_both_sides_and_near(rows, bits):
    setting = Setting.of(f"sym{bits}")
    found = setting.stored(rows)
    assert (setting.stored(-rows) == -found).float().mean() > 0.99  # all but ties
    step = 2 * rows.abs().amax(-1, keepdim=True) / (2**bits - 1)
    assert ((found - rows).abs() <= step * (0.5 + 2**bits * 2.0**-11)).all()
    assert all(len(row.unique()) <= 2**bits for row in found[0])


def test_e2m1_rounds_as_ml_dtypes_does():
    # Every half way point, which ties must settle, and what saturates; ml_dtypes saturates e2m1 too.
    x = np.arange(-33, 34, dtype=np.float32) / 4
    np.testing.assert_array_equal(e2m1(torch.from_numpy(x)), x.astype(ml_dtypes.float4_e2m1fn).astype(np.float32))


def test_mxfp4_is_e2m1_times_a_power_of_two(rows):
    groups = rows.numpy().reshape(HEADS, TOKENS, 2, 32)
    scale = 2.0 ** (np.floor(np.log2(np.abs(groups).max(-1, keepdims=True))) - 2)
    expected = (groups / scale).astype(ml_dtypes.float4_e2m1fn).astype(np.float32) * scale
    np.testing.assert_array_equal(Setting.of("mxfp4").stored(rows), expected.reshape(rows.shape))


def test_nvfp4_is_e2m1_times_e4m3_times_the_scale_of_the_tensor(rows):
    groups, largest = rows.numpy().reshape(HEADS, TOKENS, 4, 16), float(rows.abs().max())
    tensor_scale = np.float32(2 * largest / (6 * 448))
    blocks = (np.abs(groups).max(-1, keepdims=True) / np.float32(6) / tensor_scale).astype(ml_dtypes.float8_e4m3fn)
    assert blocks.astype(np.float32).max() <= 224  # half of e4m3's range is left to larger numbers than calibration's
    scale = blocks.astype(np.float32) * tensor_scale
    expected = (groups / scale).astype(ml_dtypes.float4_e2m1fn).astype(np.float32) * scale
    found = Setting.of("nvfp4").stored(rows, statistics_of(rows))
    np.testing.assert_allclose(found, expected.reshape(rows.shape), rtol=1e-6)


@pytest.mark.parametrize("block", (0, 16, 32, 64))
@pytest.mark.parametrize("signs", (False, True))
def test_a_rotation_is_orthogonal_and_spreads_each_channel_over_its_block(block, signs):
    matrix, size = rotation(block, CHANNELS, signs), block or CHANNELS
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(CHANNELS))
    inside = torch.arange(CHANNELS)[:, None] // size == torch.arange(CHANNELS) // size
    torch.testing.assert_close(matrix.abs(), inside * size**-0.5)


def test_a_rotation_that_no_hadamard_matrix_has_is_refused():
    with pytest.raises(ValueError, match="rotation of 48 channels; give a power of two that divides 64"):
        rotation(48, 64)


def test_what_is_meant_to_help_helps(rows):
    """On rows with one wide channel: the error of the others, which a wide range drowns."""

    def error(text: str) -> float:
        wrong = Setting.of(text).stored(rows, statistics_of(rows)) - rows
        return float(torch.cat([wrong[..., :WIDE], wrong[..., WIDE + 1 :]], -1)[:, :256].square().mean().sqrt())

    plain = error("int4")
    assert error("int4+hadamard") < 0.7 * plain
    assert error("int4+norm") < error("int4+normhalf") < 0.5 * plain
    assert error("int4+norm") < error("int4+norm+pair") < plain  # the wide channel's partner is divided by too much
    assert error("int4+tilenorm") < 0.3 * plain and error("int4+tile128") < 0.3 * plain
    assert error("int4+search") < 1.001 * plain
    assert error("int2+hadamard+clip") < 0.9 * error("int2+hadamard")


@pytest.mark.parametrize("word", sorted(WORDS - {"signs", "clip"}))
@pytest.mark.parametrize("more", ("", "+hadamard+signs", "+hadamard16+mean+after"))
def test_every_transform_is_undone(rows, word, more):
    # With 8 bits little is lost, unless a transform is not undone by its inverse. The widest channel spans about 120.
    found = Setting.of(f"int8+{word}{more}").stored(rows, statistics_of(rows))
    torch.testing.assert_close(found, rows, atol=0.7, rtol=0)


@pytest.mark.parametrize("text", ("int5+what", "int9", "float8", "", "int4+hadamards", "int4+group"))
def test_an_unknown_setting_is_named(text):
    with pytest.raises(ValueError, match="unknown setting") as caught:
        Setting.of(text)
    assert repr(text) in str(caught.value)


def test_bits_count_all_that_a_row_takes():
    for name in ("int8", "int4"):
        bits = 8 * ReferencePair(name, name).row_bytes("float16", 64) / 128
        assert Setting.of(name).bits_per_value(64) == bits
    for text, bits in (
        ("sym4", 4.25), ("int4+group32", 5), ("nvfp4", 4.5), ("mxfp4", 4.25), ("int4+tile128", 4.25), ("16", 16),
        ("int4+tilenorm", 4.625),
    ):  # fmt: skip
        assert Setting.of(text).bits_per_value(64) == bits, text
    # 512 tokens: 16 + 128 in 16 bits, 368 in 4.5; or half a tile of K, 64 tokens.
    assert Pair.of("int4:int4/128,16").bits(64, 512) == pytest.approx((144 * 16 + 368 * 4.5) / 512)
    assert Pair.of("int4+tile128:int4").bits(64, 512) == pytest.approx(((64 * 16 + 448 * 4.25) / 512 + 4.5) / 2)


@pytest.mark.parametrize(
    "text", ("int4+hadamard:int4", "int4:int3/32,16", "int2:int2/0,5", "int4+tile128:int8", "int4+tilenorm:int4/40,0")
)
def test_each_query_sees_what_the_cache_would_hold(rows, rng, text):
    """Against one query at a time, over keys picked one by one."""
    pair = Pair.of(text)
    q = torch.from_numpy(rng.normal(size=(2 * HEADS, TOKENS, CHANNELS)).astype(np.float16).astype(np.float32))
    v = rows.flip(1)
    found = pair.attention(())(0, q, rows, v)
    few = [side.stored(x) for side, x in ((pair.k, rows), (pair.v, v))]
    tile = {"tile128": 128, "tilenorm": NORM_TILE}.get(text.partition(":")[0].partition("+")[2], 1)
    for i in (0, 1, 63, 127, 128, 200, 299):
        for head in range(2 * HEADS):
            keys, values = [], []
            for j in range(i + 1):
                recent = j < pair.sinks or i - j < pair.window
                filling = tile > 1 and j // tile == i // tile
                keys.append((rows if recent or filling else few[0])[head // 2, j])
                values.append((v if recent else few[1])[head // 2, j])
            weights = (torch.stack(keys) @ q[head, i] / 8).softmax(0)
            torch.testing.assert_close(found[head, i], weights @ torch.stack(values), atol=2e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Weights that attend with force: attention that averages everything would hide a codec."""
    tensors = small_gguf.random_weights(np.random.default_rng(2))
    loud = {name: 2 * tensor if tensor.ndim == 2 else tensor for name, tensor in tensors.items()}
    return small_gguf.write(tmp_path_factory.mktemp("llm") / "small.gguf", loud)


def test_the_study_finds_what_the_numpy_model_finds(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(codecs_study, "CALIBRATION", ("examples/llm/text.py", 1, 100))
    monkeypatch.setattr(codecs_study.text, "pages", lambda: [tmp_path / "text.txt"])
    (tmp_path / "text.txt").write_text(TEXT)
    out = tmp_path / "found.json"
    arguments = ["--model", str(small), "--windows", "3", "--length", "39", "--settings", "int4:int8", "nvfp4+norm:16"]
    assert codecs_study.main([*arguments, "--json", str(out)]) == 0
    base, coded, other = json.loads(out.read_text())

    found = chat.load(small)
    tokens, decoder = found.tokenizer.encode(TEXT), Decoder(found.config, found.tensors)
    windows = scoring.spread(tokens, 3, 40)
    size = sum(len(found.tokenizer.decode(window[1:].tolist()).encode()) for window in windows)
    losses, logs = [], []
    for name in ("16:16", "int4:int8"):
        attend = scoring.coded_attention(ReferencePair.parse(name))
        logits = [decoder.forward(window[:-1], 0, attend) for window in windows]
        losses.append([scoring.bits_of(x, w[1:]).sum() for x, w in zip(logits, windows, strict=True)])
        shifted = np.concatenate(logits).astype(np.float64)
        logs.append(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))
    more = np.subtract(losses[1], losses[0])
    assert base["bits_per_byte"] == pytest.approx(sum(losses[0]) / size, rel=1e-5)
    assert coded["more_percent"] == pytest.approx(100 * more.sum() / sum(losses[0]), rel=1e-2)
    error = 100 * more.std(ddof=1) / np.sqrt(3) / np.mean(losses[0])
    assert coded["standard_error_percent"] == pytest.approx(error, rel=1e-2)
    divergence = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(1).mean() / np.log(2)
    assert coded["divergence_millibits"] == pytest.approx(1000 * divergence, rel=1e-2)
    assert coded["same_choice_percent"] == pytest.approx(100 * (logs[0].argmax(1) == logs[1].argmax(1)).mean())
    assert base["divergence_millibits"] == 0 and other["divergence_millibits"] > 0
    said = capsys.readouterr().out
    assert "nvfp4+norm:16" in said and f"{coded['bits_per_byte']:.4f}" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--windows", "1"], "--windows 1 has no standard error; give at least 2"),
        (["--length", "0"], "--length 0 leaves no token to score"),
        (["--settings", "int4"], "'int4' is not K:V or K:V/window,sinks"),
        (["--settings", "int4:int9"], "unknown setting 'int9'"),
        (["--model", "nowhere.gguf"], "no model at nowhere.gguf"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    try:
        status = codecs_study.main(arguments)
    except SystemExit as stop:  # argparse
        status = stop.code
    assert status in (1, 2) and message in capsys.readouterr().err
