"""A sound tiny pair as bytes, made here from nothing, for tests that damage it.

- Its target borrows K/V, has per-layer embeddings, lies in two shards, and carries what releases do
  and we leave out: a tower, and K/V weights of a layer that borrows. Its drafter is one file.
- `packed`: the same in mlx's 4-bit form.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx_lm.models.gemma4_text import Model

from sapwood.model.assistant import Assistant
from sapwood.model.checkpoint.config_file import read_assistant_config, read_target_config
from sapwood.model.checkpoint.files import ModelDirectory
from sapwood.model.pair import Pair, load_pair, try_out
from tests.model.reference import parameters

Files = dict[str, bytes]
Arrays = dict[str, np.ndarray[Any, Any]]

VOCABULARY, WIDTH = 40, 32
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "target/model.safetensors.index.json"
DRAFT = "assistant/model.safetensors"
_DTYPES = {"float32": "F32", "uint32": "U32", "int64": "I64", "int32": "I32", "uint8": "U8"}
_KINDS = ["sliding_attention", "full_attention"]
_SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>"]
_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|turn>{{ m['role'] }} {{ m['content'] }}<turn|>"
    "{% endfor %}<|turn>model "
)


def _text(layers: int, borrowing: int, ple_size: int) -> dict[str, Any]:
    return {
        "attention_bias": False,
        "attention_k_eq_v": False,
        "bos_token_id": 2,
        "enable_moe_block": False,
        "eos_token_id": 1,
        "final_logit_softcapping": 30.0,
        "global_head_dim": 16,
        "head_dim": 16,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": WIDTH,
        "hidden_size_per_layer_input": ple_size,
        "intermediate_size": WIDTH,
        "layer_types": (_KINDS * layers)[:layers],
        "max_position_embeddings": 256,
        "model_type": "gemma4_text",
        "num_attention_heads": 2,
        "num_global_key_value_heads": None,
        "num_hidden_layers": layers,
        "num_key_value_heads": 1,
        "num_kv_shared_layers": borrowing,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "full_attention": {
                "partial_rotary_factor": 0.25,
                "rope_theta": 1e6,
                "rope_type": "proportional",
            },
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
        },
        "sliding_window": 8,
        "tie_word_embeddings": True,
        "use_bidirectional_attention": None,
        "use_double_wide_mlp": False,
        "vocab_size": VOCABULARY,
        "vocab_size_per_layer_input": VOCABULARY,
    }


def _tokenizer() -> dict[str, Any]:
    letters = ["▁", "a", "b", "ab", *"cdefghijklmnopqrstuvwxyz "]
    words = {word: i for i, word in enumerate([*_SPECIAL, *letters])}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    decoders = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": text, "special": True} | flags for i, text in enumerate(_SPECIAL)
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "vocab": words,
            "merges": [["a", "b"]],
        },
    }


def _documents(packed: bool) -> dict[str, dict[str, Any]]:
    table = {"quantization": {"group_size": 32, "bits": 4}} if packed else {}
    drafter = {
        "model_type": "gemma4_assistant",
        "backbone_hidden_size": WIDTH,
        "use_ordered_embeddings": True,
        "num_centroids": 8,
        "centroid_intermediate_top_k": 2,
        "text_config": _text(2, 2, 0),
    }
    return {
        "target/config.json": {
            "model_type": "gemma4",
            "eos_token_id": [1, 5],
            "text_config": _text(4, 2, WIDTH),
        }
        | table,
        "target/generation_config.json": {"eos_token_id": [1, 5], "do_sample": True, "top_k": 4},
        "target/tokenizer_config.json": {"bos_token": "<bos>", "unk_token": "<unk>"},
        "target/tokenizer.json": _tokenizer(),
        "assistant/config.json": drafter | table,
    }


@cache
def sound(packed: bool = False) -> Mapping[str, bytes]:
    """Every file of the pair, by its path below the folder that holds both."""
    files = {name: json.dumps(d).encode() for name, d in _documents(packed).items()}
    files["target/chat_template.jinja"] = _TEMPLATE.encode()
    with tempfile.TemporaryDirectory() as place:
        write(files, Path(place))
        text = read_target_config(ModelDirectory(Path(place) / "target")).text
        draft = read_assistant_config(ModelDirectory(Path(place) / "assistant"))
    mx.random.seed(0)
    tensors = _drawn(Model(text.model_args()), packed)
    prefix = "language_model.model." if packed else "model.language_model."
    target = {prefix + k.removeprefix("model."): v for k, v in tensors.items()}
    target["model.vision_tower.patch.weight"] = np.full((2,), np.nan, np.float32)
    target[f"{prefix}layers.3.self_attn.k_proj.weight"] = np.zeros((1, 2), np.float32)
    names = sorted(target)
    weight_map = {name: (TWO, ONE)[i % 2] for i, name in enumerate(names)}
    for shard in (ONE, TWO):
        part = {name: target[name] for name in names if weight_map[name] == shard}
        files[f"target/{shard}"] = safetensors(part)
    files[INDEX] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    drafts = _drawn(Assistant(draft), packed)
    order = np.random.default_rng(0).permutation(VOCABULARY).astype(np.int64)
    files[DRAFT] = safetensors(drafts | {"masked_embedding.token_ordering": order})
    return MappingProxyType(files)


def _drawn(module: nn.Module, packed: bool) -> Arrays:
    if packed:
        nn.quantize(module, group_size=32, bits=4)
    return {name: np.array(array) for name, array in parameters(module).items()}


def safetensors(arrays: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in arrays.items():
        end = len(data) + array.nbytes
        header[name] = {
            "dtype": _DTYPES[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [len(data), end],
        }
        data += array.tobytes()
    return with_header(header, data)


def with_header(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    """A sound file's header and its data."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def arrays_of(content: bytes) -> Arrays:
    """A sound file's tensors, to change and write again."""
    header, data = header_of(content)
    types = {code: name for name, code in _DTYPES.items()}
    return {
        name: np.frombuffer(data[slice(*t["data_offsets"])], types[t["dtype"]])
        .reshape(t["shape"])
        .copy()
        for name, t in header.items()
        if name != "__metadata__"
    }


def change(files: Files, name: str, edit: Callable[[Any], Any]) -> None:
    """Edit a JSON document in place, or replace it by what `edit` returns."""
    document = json.loads(files[name])
    changed = edit(document)
    files[name] = json.dumps(document if changed is None else changed).encode()


def write(files: Mapping[str, bytes], place: Path) -> None:
    for name, content in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def load(place: Path) -> Pair:
    """The pair as the daemon loads it. Raises ModelRefused."""
    directories = ModelDirectory(place / "target"), ModelDirectory(place / "assistant")
    pair = load_pair(*directories, "float32")
    try_out(pair)
    return pair
