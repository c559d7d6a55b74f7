"""Every bad file of a model is one sentence: the file, the tensor or key, expected and found.

The table damages the bytes of a sound pair; the sentences lie beside it, in bad_files.txt. What the
file system can do to a name comes after it.
"""

from __future__ import annotations

import gc
import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from model.files import ModelDirectory, ModelRefused
from model.pair import load_pair
from model.safetensors import TensorEntry, weight_files
from model.weights import Fitted
from tests.model.damage import CONFIG, ONE_PATH, TOKENIZER, TWO_PATH, Damage
from tests.model.reference import parameters
from tests.model.sound import DRAFT, INDEX, ONE, TWO, arrays_of, load, sound, with_header, write

Change = Callable[[Damage], object]

GENERATION, NAMES = "target/generation_config.json", "target/tokenizer_config.json"
TEMPLATE, DRAFT_CONFIG = "target/chat_template.jinja", "assistant/config.json"
INNER = "model.language_model."
NORM = f"{INNER}norm.weight"
UP = "language_model.model.layers.0.mlp.up_proj.weight"
SCALES, BIASES = UP.replace("weight", "scales"), UP.replace("weight", "biases")


def _one_infinity(size: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.where(np.arange(size) == size // 2, np.inf, -1).astype(np.float32)


CASES: dict[str, Change] = {
    "an empty file": lambda d: d.put(ONE_PATH, b""),
    "a file shorter than its length field": lambda d: d.put(ONE_PATH, b"1234567"),
    "a header longer than its file": lambda d: d.put(
        ONE_PATH, (1 << 20).to_bytes(8, "little") + b"{}"
    ),
    "a header longer than allowed": lambda d: d.put(
        ONE_PATH, (1 << 63).to_bytes(8, "little") + b"{}"
    ),
    "a header that is no UTF-8": lambda d: d.put(ONE_PATH, with_header(b"{\xff}", b"")),
    "a header that is no JSON": lambda d: d.put(ONE_PATH, with_header(b"{'a'}", b"")),
    "a header that is no object": lambda d: d.put(ONE_PATH, with_header(b"[1]", b"")),
    "a header nested too deep": lambda d: d.put(ONE_PATH, with_header(b"[" * 100_000, b"")),
    "a header with a number too long": lambda d: d.put(
        ONE_PATH, with_header(b'{"a": ' + b"9" * 5000 + b"}", b"")
    ),
    "a tensor twice in a header": lambda d: d.put(
        ONE_PATH, with_header(b'{"a": {}, "a": {}}', b"")
    ),
    "metadata that is no table of text": lambda d: d.header(
        lambda h: h | {"__metadata__": {"format": 1}}
    ),
    "a tensor's name that writes to the terminal": lambda d: d.header(lambda h: h | {"\x1b[2J": 0}),
    "a tensor's name without an end": lambda d: d.header(lambda h: h | {"x" * 9999: 0}),
    "an entry that is no table": lambda d: d.header(lambda h: h | {NORM: 7}),
    "an entry that wants another file": lambda d: d.header(
        lambda h: h | {NORM: {"path": "/etc/passwd"}}
    ),
    "a dtype that is none": lambda d: d.entry(NORM, dtype="F8_E4M3"),
    "a dtype that is no text": lambda d: d.entry(NORM, dtype=["F32"]),
    "a negative shape": lambda d: d.entry(NORM, shape=[-32]),
    "a shape beyond 31 bits": lambda d: d.entry(NORM, shape=[0, 1 << 40], data_offsets=[0, 0]),
    "a shape of more than eight sizes": lambda d: d.entry(NORM, shape=[1] * 8 + [32]),
    "a shape of truths": lambda d: d.entry(NORM, shape=[True]),
    "a shape that is no list": lambda d: d.entry(NORM, shape=32),
    "a shape larger than its bytes": lambda d: d.entry(NORM, shape=[33]),
    "a shape whose product is astronomic": lambda d: d.entry(NORM, shape=[(1 << 31) - 1] * 8),
    "negative offsets": lambda d: d.entry(NORM, data_offsets=[-128, 0]),
    "offsets beyond 62 bits": lambda d: d.entry(NORM, data_offsets=[1 << 63, (1 << 63) + 128]),
    "offsets that are no pair": lambda d: d.entry(NORM, data_offsets=[0]),
    "tensors that overlap": lambda d: d.move(NORM, -4),
    "tensors with a gap": lambda d: d.move(NORM, 4),
    "a file cut short": lambda d: d.put(ONE_PATH, d.files[ONE_PATH][:-1]),
    "bytes that nobody owns": lambda d: d.put(ONE_PATH, d.files[ONE_PATH] + b"x"),
    "an index that is no JSON": lambda d: d.put(INDEX, b"{"),
    "an index without a map": lambda d: d.document(INDEX, lambda c: {}),
    "an index with an empty map": lambda d: d.document(INDEX, lambda c: {"weight_map": {}}),
    "an index that maps to no name": lambda d: d.document(
        INDEX, lambda c: c["weight_map"].update({"a": [1]})
    ),
    "an index that leaves its directory": lambda d: d.place(NORM, "../assistant/model.safetensors"),
    "an index with an absolute path": lambda d: d.place(NORM, "/etc/passwd"),
    "an index with a backslash": lambda d: d.place(NORM, "..\\x"),
    "an index with a NUL": lambda d: d.place(NORM, "a\0b"),
    "an index that names a missing shard": lambda d: d.place(NORM, "model-3.safetensors"),
    "an index that names a tensor of no shard": lambda d: d.place("model.extra", ONE),
    "an index that names the other shard": lambda d: d.place(NORM, TWO),
    "an index that leaves a tensor out": lambda d: d.document(
        INDEX, lambda c: c["weight_map"].pop(NORM) and None
    ),
    "a tensor in two shards": lambda d: d.tensor(NORM, np.ones(32, np.float32), TWO_PATH),
    "a missing tensor": lambda d: d.tensor(NORM, None),
    "a tensor of another shape": lambda d: d.tensor(NORM, np.ones(16, np.float32)),
    "a tensor of another kind of dtype": lambda d: d.tensor(NORM, np.ones(32).astype("int32")),
    "a tensor that the text part does not have": lambda d: d.tensor(
        f"{INNER}layers.0.mlp.bias", np.ones(1, np.float32)
    ),
    "K/V weights of a layer that is not there": lambda d: d.tensor(
        f"{INNER}layers.9.self_attn.k_proj.weight", np.ones(1, np.float32)
    ),
    "a range that mlx-lm would drop": lambda d: d.tensor(
        f"{INNER}layers.0.mlp.up_proj.input_max", np.ones(1, np.float32)
    ),
    "a tensor under two names": lambda d: d.tensor("model.norm.weight", np.ones(32, np.float32)),
    "a weight that is NaN": lambda d: d.tensor(NORM, np.ones(32, np.float32) * float("nan")),
    "a weight that is infinite": lambda d: d.tensor(NORM, -_one_infinity(32)),
    "a drafter's missing tensor": lambda d: d.tensor("model.norm.weight", None, DRAFT),
    "a drafter's tensor that it does not have": lambda d: d.tensor(
        "model.extra.weight", np.ones(1, np.float32), DRAFT
    ),
    "a drafter's tensor of another shape": lambda d: d.tensor(
        "model.norm.weight", np.ones(16, np.float32), DRAFT
    ),
    "a drafter's weight that is NaN": lambda d: d.tensor(
        "model.norm.weight", np.ones(32, np.float32) * float("nan"), DRAFT
    ),
    "an ordering with an id twice": lambda d: d.tensor(
        "masked_embedding.token_ordering", np.zeros(40, np.int64), DRAFT
    ),
    "a drafter's file cut short": lambda d: d.put(DRAFT, d.files[DRAFT][:-1]),
    "a config that is missing": lambda d: d.remove(CONFIG),
    "a config that is no JSON": lambda d: d.put(CONFIG, b"{\n  nope}"),
    "a config that is no UTF-8": lambda d: d.put(CONFIG, b"\xff"),
    "a config that is too large": lambda d: d.put(CONFIG, b" " * (17 << 20)),
    "a config with a key twice": lambda d: d.put(CONFIG, b'{"a": 1, "a": 2}'),
    "a config without its text part": lambda d: d.key(CONFIG, "text_config", []),
    "a width that is text": lambda d: d.text("hidden_size", "32"),
    "a width that is true": lambda d: d.text("hidden_size", True),
    "a width that is a fraction": lambda d: d.text("hidden_size", 32.0),
    "a width that is negative": lambda d: d.text("hidden_size", -32),
    "a width of zero": lambda d: d.text("hidden_size", 0),
    "a width of thousands of digits": lambda d: d.text("hidden_size", 10**4000),
    "a thousand million layers": lambda d: d.text("num_hidden_layers", 10**9),
    "layers of no kind": lambda d: d.text("layer_types", ["sliding_attention", ["x"], "x", "x"]),
    "heads that together are too wide": lambda d: d.text("num_attention_heads", 1 << 20),
    "a flag that is a number": lambda d: d.text("use_double_wide_mlp", 1),
    "a fixed key that is zero for false": lambda d: d.text("attention_bias", 0),
    "a number of thousands of digits": lambda d: d.text("rms_norm_eps", 10**400),
    "a number that is not one": lambda d: d.text("rms_norm_eps", float("nan")),
    "a number below all use": lambda d: d.text("final_logit_softcapping", 1e-300),
    "a rotary base below one": lambda d: d.text(
        "rope_parameters", {"sliding_attention": {"rope_type": "default", "rope_theta": 0.5}}
    ),
    "a rotary setting from the terminal": lambda d: d.text(
        "rope_parameters", {"sliding_attention": {"rope_type": "default", "\n": 1}}
    ),
    "a layer number of thousands of digits": lambda d: d.text("per_layer_config", {"1" * 5000: {}}),
    "a width that the weights do not have": lambda d: d.text("intermediate_size", 64),
    "a beginning beyond the vocabulary": lambda d: d.text("bos_token_id", 40),
    "a padding that is no id": lambda d: d.text("pad_token_id", -1),
    "an ending beyond the vocabulary": lambda d: d.key(CONFIG, "eos_token_id", [1, 40]),
    "an ending of the drafter beyond the vocabulary": lambda d: d.document(
        DRAFT_CONFIG, lambda c: c["text_config"].update(eos_token_id=40)
    ),
    "a drafter for another target": lambda d: d.key(DRAFT_CONFIG, "backbone_hidden_size", 64),
    "a generation config that is no object": lambda d: d.put(GENERATION, b"[]"),
    "an ending of generation beyond the vocabulary": lambda d: d.key(
        GENERATION, "eos_token_id", 40
    ),
    "a padding of generation beyond the vocabulary": lambda d: d.key(
        GENERATION, "pad_token_id", 40
    ),
    "sampling that is neither on nor off": lambda d: d.key(GENERATION, "do_sample", "yes"),
    "a temperature that is text": lambda d: d.key(GENERATION, "temperature", "hot"),
    "a top_k without an end": lambda d: d.key(GENERATION, "top_k", 10**400),
    "a tokenizer that is missing": lambda d: d.remove(TOKENIZER),
    "a tokenizer that is no JSON": lambda d: d.put(TOKENIZER, b"{"),
    "a tokenizer of another kind": lambda d: d.model(type="WordLevel"),
    "a tokenizer that rolls dice": lambda d: d.model(dropout=0.5),
    "a tokenizer with a merge of nothing": lambda d: d.model(merges=[["q", "?"]]),
    "a tokenizer that joins otherwise": lambda d: d.model(continuing_subword_prefix="##"),
    "a tokenizer that panics": lambda d: d.key(
        TOKENIZER, "normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    ),
    "a tokenizer without its unknown token": lambda d: d.model(unk_token="<none>"),
    "a vocabulary larger than the logits": lambda d: d.document(
        TOKENIZER, lambda c: c["model"]["vocab"].update({"zz": 40})
    ),
    "a vocabulary with an id twice": lambda d: d.document(
        TOKENIZER, lambda c: c["model"]["vocab"].update({"zz": 7})
    ),
    "an added token without text": lambda d: d.document(
        TOKENIZER, lambda c: c["added_tokens"][0].update(content="")
    ),
    "added tokens that are none": lambda d: d.key(TOKENIZER, "added_tokens", {}),
    "a decoder that we cannot follow": lambda d: d.key(TOKENIZER, "decoder", None),
    "a tokenizer config that is no JSON": lambda d: d.put(NAMES, b"{"),
    "a beginning that is no token": lambda d: d.key(NAMES, "bos_token", "<start>"),
    "a template that is none": lambda d: d.put(TEMPLATE, b"{% for %}"),
    "a template nested too deep": lambda d: d.put(TEMPLATE, b"{{ " + b"(" * 5000),
    "a template of too many blocks": lambda d: d.put(
        TEMPLATE, b"{% for x in y %}" * 30 + b"{% endfor %}" * 30
    ),
    "a template that is no text": lambda d: (d.remove(TEMPLATE), d.key(NAMES, "chat_template", 7)),
    "templates whose default is no text": lambda d: (
        d.remove(TEMPLATE),
        d.key(
            NAMES,
            "chat_template",
            [{"name": [], "template": "x"}, {"name": "default", "template": 1}],
        ),
    ),
}


PACKED: dict[str, Change] = {
    "packed weights of another dtype": lambda d: d.tensor(
        UP, np.zeros((32, 4)).astype("int32"), TWO_PATH
    ),
    "scales that are NaN": lambda d: d.tensor(
        SCALES, np.ones((32, 1), np.float32) * float("nan"), ONE_PATH
    ),
    "scales that are missing": lambda d: d.tensor(SCALES, None, ONE_PATH),
    "biases that are missing": lambda d: d.tensor(BIASES, None, TWO_PATH),
    "biases that are infinite": lambda d: d.tensor(
        BIASES, np.ones((32, 1), np.float32) / 0, TWO_PATH
    ),
}


@cache
def _sentences() -> dict[str, str]:
    lines = (Path(__file__).parent / "bad_files.txt").read_text().splitlines()[3:]
    return {name: sentence.strip() for name, sentence in zip(lines[::3], lines[1::3], strict=True)}


def _refusal(files: dict[str, bytes], place: Path) -> str:
    write(files, place)
    with pytest.raises(ModelRefused) as refused:
        load(place)
    return str(refused.value).removeprefix(f"{place}/")


def _assert_refused(damage: Change, sentence: str, packed: bool, place: Path) -> None:
    damaged = Damage(dict(sound(packed)))
    with np.errstate(divide="ignore"):
        damage(damaged)
    found = _refusal(damaged.files, place)
    start = sentence.removesuffix("…")
    assert found == sentence or (start != sentence and found.startswith(start))
    assert found.isprintable()


@pytest.mark.parametrize("case", CASES)
def test_a_bad_file_is_one_sentence(case: str, tmp_path: Path) -> None:
    _assert_refused(CASES[case], _sentences()[case], False, tmp_path)


@pytest.mark.parametrize("case", PACKED)
def test_a_bad_packed_file_is_one_sentence(case: str, tmp_path: Path) -> None:
    _assert_refused(PACKED[case], _sentences()[case], True, tmp_path)


def test_every_sentence_has_its_case() -> None:
    assert _sentences().keys() == CASES.keys() | PACKED.keys()


@pytest.mark.parametrize("packed", [False, True])
def test_the_undamaged_pair_loads(packed: bool, tmp_path: Path) -> None:
    """The NaN in its tower's tensor included: what is left out is not read."""
    write(sound(packed), tmp_path)
    pair = load(tmp_path)
    assert pair.tokenizer.encode_text("ab")[1:] == [9]


def test_a_bad_drafter_is_found_before_the_targets_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.weights.Fitted.load", lambda *_: pytest.fail("weights were read"))
    for case in (
        "a drafter's missing tensor",
        "a drafter's file cut short",
        "a tensor in two shards",
    ):
        damaged = Damage(dict(sound()))
        CASES[case](damaged)
        assert _refusal(damaged.files, tmp_path / case) == _sentences()[case]


def _peak_bytes(load_it: Callable[[], object]) -> int:
    gc.collect()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    load_it()
    return mx.get_peak_memory() - before


def test_the_first_bad_tensor_ends_the_load(tmp_path: Path) -> None:
    """What comes after it in the files is never in memory."""
    write(sound(), tmp_path / "sound")
    whole = _peak_bytes(lambda: load(tmp_path / "sound"))
    damaged = Damage(dict(sound()))
    name, array = next(iter(arrays_of(damaged.files[ONE_PATH]).items()))
    damaged.tensor(name, array * np.float32("nan"))
    sentence = f"target/{ONE}: {name} holds NaN or infinity, expected finite float32 values"
    found: list[str] = []
    part = _peak_bytes(lambda: found.append(_refusal(damaged.files, tmp_path)))
    assert found == [sentence]
    assert part < whole / 4


def test_what_overflows_in_the_dtype_that_is_served_is_refused(tmp_path: Path) -> None:
    damaged = Damage(dict(sound()))
    damaged.tensor(NORM, np.full(32, 1e6, np.float32))
    write(damaged.files, tmp_path)
    target = ModelDirectory(tmp_path / "target")
    assert load_pair(target, None, "bfloat16").dtype == mx.bfloat16
    with pytest.raises(ModelRefused, match=r"NaN or infinity, expected finite float16 values$"):
        load_pair(target, None, "float16")


def test_a_model_whose_numbers_overflow_is_refused(tmp_path: Path) -> None:
    """Every weight is finite, and their products are not."""
    damaged = Damage(dict(sound()))
    damaged.text("final_logit_softcapping", None)
    damaged.tensor(NORM, np.full(32, 3e38, np.float32))
    sentence = "the target's logits are not finite in float32, expected numbers"
    assert _refusal(damaged.files, tmp_path / "target") == sentence
    damaged = Damage(dict(sound()))
    damaged.tensor("model.norm.weight", np.full(32, 3e38, np.float32), DRAFT)
    sentence = "the drafter's logits are not finite in float32, expected numbers"
    assert _refusal(damaged.files, tmp_path / "drafter") == sentence


def test_an_absurd_config_costs_nothing_before_it_is_refused(tmp_path: Path) -> None:
    """The largest sizes that a config may name, against the headers of small files."""
    sizes = {"vocab_size": 1 << 24, "hidden_size": 1 << 20, "intermediate_size": 1 << 20}
    experts = {"enable_moe_block": True, "num_experts": 1 << 20, "top_k_experts": 1 << 20}
    damaged = Damage(dict(sound()))
    for key, value in (sizes | experts | {"moe_intermediate_size": 1 << 20}).items():
        damaged.text(key, value)
    damaged.text("vocab_size_per_layer_input", 1 << 24)
    damaged.remove(DRAFT_CONFIG)
    write(damaged.files, tmp_path)
    found: list[str] = []

    def refuse() -> None:
        with pytest.raises(ModelRefused) as refused:
            load_pair(ModelDirectory(tmp_path / "target"), None, "float32")
        found.append(str(refused.value))

    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert _peak_bytes(refuse) < 1 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kib < 32 << 10
    assert (
        "does not fit the config: expected model.embed_tokens.weight is" in found[0]
        or "is missing" in found[0]
    )


class _One(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(64, 8, bias=False)


@pytest.mark.parametrize(
    ("mode", "group_size", "bits", "part", "byte", "code"),
    [
        ("mxfp4", 32, 4, "scales", 0xFF, "e8m0"),
        ("mxfp8", 32, 8, "scales", 0xFF, "e8m0"),
        ("mxfp8", 32, 8, "weight", 0x7F, "e4m3"),
        ("nvfp4", 16, 4, "scales", 0x7F, "e4m3"),
        ("nvfp4", 16, 4, "scales", 0xFF, "e4m3"),
    ],
)
def test_a_float8_number_that_is_none_is_refused(
    mode: str, group_size: int, bits: int, part: str, byte: int, code: str
) -> None:
    def fitted(byte: int) -> Fitted[_One]:
        module = _One()
        nn.quantize(module, group_size=group_size, bits=bits, mode=mode)
        weights = parameters(module)
        array = np.array(weights[f"proj.{part}"])
        array.view(np.uint8)[3, 1] = byte
        weights[f"proj.{part}"] = mx.array(array)
        origins = {k: TensorEntry("here", k, "U8", v.shape, 0, 0) for k, v in weights.items()}
        return Fitted(module, weights, origins)

    fitted(0x3F).load(mx.float32)
    sentence = f"^here: proj.{part} holds NaN or infinity, expected finite {code} values$"
    with pytest.raises(ModelRefused, match=sentence):
        fitted(byte).load(mx.float32)


def _single(place: Path) -> ModelDirectory:
    """A directory whose one weight file is still to be made."""
    home = place / "model"
    home.mkdir()
    (place / "elsewhere").write_bytes(sound()[DRAFT])
    return ModelDirectory(home)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (Path.mkdir, "model/model.safetensors: is not a regular file"),
        (os.mkfifo, "model/model.safetensors: is not a regular file"),
        (
            lambda p: p.symlink_to("/dev/zero"),
            "model/model.safetensors: leads out of its directory, to /dev/zero",
        ),
        (
            lambda p: p.symlink_to("../elsewhere"),
            "model/model.safetensors: leads out of its directory, to {}/elsewhere",
        ),
        (lambda p: p.symlink_to("gone"), "model/model.safetensors: no such file"),
        (lambda p: p.symlink_to(p.name), "model/model.safetensors: cannot be read: "),
    ],
)
def test_a_weight_file_is_a_regular_file_of_its_directory(
    make: Callable[[Path], None], sentence: str, tmp_path: Path
) -> None:
    directory = _single(tmp_path)
    make(directory.path / "model.safetensors")
    with pytest.raises(ModelRefused) as refused:
        weight_files(directory)
    assert str(refused.value).startswith(f"{tmp_path}/{sentence.format(tmp_path)}")


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder that others may enter, left by who may read everything."""
    with tempfile.TemporaryDirectory() as name:
        place, user = Path(name), os.geteuid()
        place.chmod(0o755)
        write(sound(), place)
        yield place
        os.seteuid(user)


@pytest.mark.parametrize(
    ("name", "mode", "sentence"),
    [
        (f"target/{ONE}", 0, f"target/{ONE}: cannot be read: Permission denied"),
        (CONFIG, 0, f"{CONFIG}: cannot be read: Permission denied"),
        (TEMPLATE, 0, f"{TEMPLATE}: cannot be read: Permission denied"),
        ("target", 0, f"{CONFIG}: cannot be read: Permission denied"),
    ],
)
def test_a_file_that_may_not_be_read_is_one_sentence(
    name: str, mode: int, sentence: str, as_nobody: Path
) -> None:
    (as_nobody / name).chmod(mode)
    if os.geteuid() == 0:
        os.seteuid(65534)
    with pytest.raises(ModelRefused) as refused:
        load(as_nobody)
    assert str(refused.value) == f"{as_nobody}/{sentence}"


def test_an_optional_file_that_leads_nowhere_is_not_taken_for_absent(tmp_path: Path) -> None:
    """A default in its place would be silent."""
    files = dict(sound())
    del files[GENERATION]
    write(files, tmp_path)
    (tmp_path / GENERATION).symlink_to("../../blobs/gone")
    with pytest.raises(ModelRefused, match=f"{GENERATION}: no such file"):
        load(tmp_path)


def test_a_folder_of_any_name_stays_on_one_line(tmp_path: Path) -> None:
    home = tmp_path / "a\n\x1b[2J"
    with pytest.raises(ModelRefused) as refused:
        load(home)
    assert str(refused.value) == f"{tmp_path}/a\\n\\x1b[2J/target/config.json: no such file"
