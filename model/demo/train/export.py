"""Writes target and drafter in Hugging Face format, and checks them against transformers.

Released style: every key of the config spelt out, bfloat16 safetensors, template beside the
tokenizer. reference.npz in the work folder keeps what transformers says of a few rows, in float32,
for measure.py, which compares the daemon's own model with it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

from sapwood.model.demo.train.learn import TokenRows
from sapwood.model.demo.train.shape import DRAFTER, TARGET
from sapwood.model.demo.train.things import TEXT
from sapwood.model.demo.train.tokens import BOS, EOS, TURN_END

REFERENCE_ROWS = 2
SPECIAL_IDS: dict[str, Any] = {
    "bos_token_id": BOS,
    "pad_token_id": 0,
    "eos_token_id": [EOS, TURN_END],
}
SAMPLING = {"do_sample": True, "temperature": 0.8, "top_k": 40, "top_p": 0.95}
DRAFTING = {"num_assistant_tokens": 3, "num_assistant_tokens_schedule": "constant"}
ASSISTANT: dict[str, Any] = {
    "architectures": ["Gemma4AssistantForCausalLM"],
    "model_type": "gemma4_assistant",
    "backbone_hidden_size": TARGET["hidden_size"],
    "use_ordered_embeddings": False,
    "num_centroids": 64,
    "centroid_intermediate_top_k": 8,
    "tie_word_embeddings": True,
    "block_size": 4,
    "text_config": DRAFTER,
    "dtype": "bfloat16",
    "pad_token_id": 0,
    "eos_token_id": EOS,
    "bos_token_id": BOS,
}


def export_target(work: Path, out: Path) -> None:
    weights = torch.load(work / "target.pt", weights_only=True)["model"]
    named = {f"model.{name}": weight for name, weight in weights.items()}
    write_checkpoint(out, work / "tokenizer.json", TARGET, SPECIAL_IDS | SAMPLING, named)


def export_drafter(work: Path, out: Path) -> None:
    weights = torch.load(work / "drafter.pt", weights_only=True)["model"]
    named = {
        name if "projection" in name.split(".")[0] else f"model.{name}": weight
        for name, weight in weights.items()
    }
    write_checkpoint(out, work / "tokenizer.json", ASSISTANT, SPECIAL_IDS | DRAFTING, named)


def write_checkpoint(
    out: Path,
    tokenizer: Path,
    config: dict[str, Any],
    generation: dict[str, Any],
    weights: dict[str, torch.Tensor],
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    rounded = {name: weight.bfloat16().contiguous() for name, weight in weights.items()}
    save_file(rounded, out / "model.safetensors", metadata={"format": "pt"})
    template = (TEXT / "chat_template.jinja").read_text(encoding="utf-8")
    shutil.copyfile(tokenizer, out / "tokenizer.json")
    shutil.copyfile(TEXT / "chat_template.jinja", out / "chat_template.jinja")
    for name, content in (
        ("config.json", config),
        ("generation_config.json", generation),
        ("tokenizer_config.json", tokenizer_config(template)),
    ):
        (out / name).write_text(json.dumps(content, indent=1), encoding="utf-8")


def tokenizer_config(template: str) -> dict[str, Any]:
    names = ("bos", "eos", "pad", "unk", "mask")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name}_token": f"<{name}>" for name in names},
        "model_max_length": TARGET["max_position_embeddings"],
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": True,
        "sot_token": "<|turn>",
        "eot_token": "<turn|>",
        "chat_template": template,
    }


def load_with_transformers(path: Path) -> Any:
    """The checkpoint as transformers loads it, in float32; nothing may be missing or left over."""
    auto = transformers.AutoModelForCausalLM
    model, report = auto.from_pretrained(
        path, dtype=torch.float32, output_loading_info=True, attn_implementation="eager"
    )
    wrong = {what: sorted(names) for what, names in report.items() if names}
    assert not wrong, f"{path}: transformers found {wrong}"
    return model.eval()


def write_reference(work: Path, out: Path) -> None:
    """What transformers computes of held-out rows, document by document."""
    model = load_with_transformers(out)
    rows = TokenRows(work / "held.npz", 1)
    kept: dict[str, Any] = {}
    for index in range(REFERENCE_ROWS):
        tokens, documents, _ = rows.take(slice(index, index + 1))
        ids = tokens[documents == 0][None]
        with torch.no_grad():
            kept[f"logits{index}"] = model(ids).logits[0].numpy()
        kept[f"ids{index}"] = ids[0].numpy()
    np.savez(work / "reference.npz", **kept)
