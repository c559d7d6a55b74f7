"""What may be wrong with a model file: each case damages a sound pair.

bad_files.txt has the sentence by which each is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.model.checkpoint.damage import CONFIG, ONE_PATH, TOKENIZER, TWO_PATH, Damage
from tests.model.checkpoint.sound import DRAFT, INDEX, ONE, TWO, with_header

Change = Callable[[Damage], object]
INNER = "model.language_model."
NORM = f"{INNER}norm.weight"
UP = "language_model.model.layers.0.mlp.up_proj.weight"
GENERATION, NAMES = "target/generation_config.json", "target/tokenizer_config.json"
TEMPLATE, DRAFT_CONFIG = "target/chat_template.jinja", "assistant/config.json"
SCALES, BIASES = UP.replace("weight", "scales"), UP.replace("weight", "biases")


def _one_infinity(size: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.where(np.arange(size) == size // 2, np.inf, -1).astype(np.float32)


def _template_in_config(template: Any) -> Change:
    def moved(damage: Damage) -> None:
        damage.remove(TEMPLATE)
        damage.key(NAMES, "chat_template", template)

    return moved


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
    "a template that fails on a plain turn": lambda d: d.put(TEMPLATE, b"{{ strptime('x') }}"),
    "a template that loses what was said": lambda d: d.put(TEMPLATE, b"{{ messages[0].role }}"),
    "a template for tools that fails": _template_in_config(
        {"default": "{{ messages[0].content }}", "tool_use": "{{ tools[1].name.x }}"}
    ),
    "a template that is no text": _template_in_config(7),
    "templates whose default is no text": _template_in_config(
        [{"name": [], "template": "x"}, {"name": "default", "template": 1}]
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
