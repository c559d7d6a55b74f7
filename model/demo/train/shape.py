"""The shapes of the demo pair and the plan of its training: every number in one place.

TARGET and DRAFTER hold the keys that a released config.json spells out; the training modules read
their sizes from them, so that what is trained is what the exported config says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SEED = 20261121
VOCAB = 2048
ROW = 1024  # tokens per packed row
WINDOW = 128

ROPE: dict[str, Any] = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {
        "rope_type": "proportional",
        "rope_theta": 1000000.0,
        "partial_rotary_factor": 0.25,
    },
}
COMMON: dict[str, Any] = {
    "model_type": "gemma4_text",
    "vocab_size": VOCAB,
    "num_key_value_heads": 1,
    "num_global_key_value_heads": None,
    "head_dim": 64,
    "global_head_dim": 128,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-06,
    "use_cache": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "tie_word_embeddings": True,
    "rope_parameters": ROPE,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_k_eq_v": False,
    "sliding_window": WINDOW,
    "use_bidirectional_attention": None,
    "enable_moe_block": False,
    "num_experts": None,
    "top_k_experts": None,
    "moe_intermediate_size": None,
    "dtype": "bfloat16",
}
SSSF = ["sliding_attention"] * 3 + ["full_attention"]
TARGET: dict[str, Any] = COMMON | {
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size": 256,
    "intermediate_size": 192,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "layer_types": SSSF * 2,
    "final_logit_softcapping": 30.0,
    "hidden_size_per_layer_input": 16,
    "num_kv_shared_layers": 4,
    "use_double_wide_mlp": True,
    "architectures": ["Gemma4ForCausalLM"],
}
DRAFTER: dict[str, Any] = COMMON | {
    "vocab_size_per_layer_input": 0,
    "hidden_size": 192,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "layer_types": ["sliding_attention", "full_attention"],
    "final_logit_softcapping": None,
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 2,
    "use_double_wide_mlp": False,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is trained. rows: per step, over both processes. every: steps per checkpoint.

    until: the run ends after this step, as an interrupted one does, and may be taken up again.
    """

    steps: int
    rows: int = 8
    warmup: int = 40
    every: int = 100
    matrix_rate: float = 0.02
    other_rate: float = 3e-3
    until: int | None = None

    def rate(self, step: int) -> float:
        """The factor on both learning rates: up, level, then down to zero from half way on."""
        up = (step + 1) / self.warmup
        down = 2 * (self.steps - step) / self.steps
        return min(1.0, up, down)


TARGET_PLAN = Plan(steps=3300)
DRAFTER_PLAN = Plan(steps=450)
