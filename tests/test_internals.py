"""What we use of other people's insides: why these packages have an upper bound.

A release beyond the bound is let in by whoever has seen these tests pass with it.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
import tomllib
from typing import Any

import pytest
from grpc_reflection.v1alpha._async import ReflectionServicer
from mlx import nn
from mlx_lm.models import gemma4_text, rope_utils, switch_layers
from packaging.requirements import Requirement
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from sapwood.daemon.extras import SERVE_PACKAGES
from sapwood.model.pair import Pair, load_pair
from tests.model.reference import checkpoint
from tests.test_rooms import NAMES, PATHS, ROOT, modules

BOUNDED = {"mlx-lm": "mlx_lm", "grpcio-reflection": "grpc_reflection", "uvicorn": "uvicorn"}
IMPORTED = {
    "grpc_reflection.v1alpha._async.ReflectionServicer",
    "grpc_reflection.v1alpha.reflection_pb2",
    "mlx_lm.models.gemma4_text.DecoderLayer",
    "mlx_lm.models.gemma4_text.Gemma4TextModel",
    "mlx_lm.models.gemma4_text.MLP",
    "mlx_lm.models.gemma4_text.Model",
    "mlx_lm.models.gemma4_text.ModelArgs",
    "mlx_lm.models.gemma4_text.logit_softcap",
    "mlx_lm.models.rope_utils.initialize_rope",
    "mlx_lm.models.switch_layers.QuantizedSwitchLinear",
    "uvicorn.Config",
    "uvicorn.protocols.http.h11_impl.H11Protocol",
    "uvicorn.server.ServerState",
}
ATTENTION = (
    *("has_kv", "is_sliding", "head_dim", "n_heads", "n_kv_heads", "use_k_eq_v"),
    *("o_proj", "q_norm", "q_proj", "rope"),
)
OWN_KV = ("k_norm", "k_proj", "v_norm")
LAYER = (
    *("enable_moe", "input_layernorm", "layer_scalar", "layer_type", "mlp", "self_attn"),
    *("post_attention_layernorm", "post_feedforward_layernorm", "pre_feedforward_layernorm"),
)
PER_LAYER = ("per_layer_input_gate", "per_layer_projection", "post_per_layer_input_norm")
EXPERTS = (
    *("experts", "router"),
    *("post_feedforward_layernorm_1", "post_feedforward_layernorm_2"),
    "pre_feedforward_layernorm_2",
)
TEXT = (
    *("embed_scale", "embed_tokens", "layers", "norm", "previous_kvs", "window_size"),
    *("hidden_size_per_layer_input", "_get_per_layer_inputs", "_project_per_layer_inputs"),
)
ROUTER = ("_root_size", "config", "eps", "per_expert_scale", "proj", "scale")
MODEL = ("args", "final_logit_softcapping", "model", "sanitize", "tie_word_embeddings")


@pytest.mark.parametrize("package", BOUNDED)
def test_a_package_whose_insides_we_use_is_bounded(package: str) -> None:
    (needed,) = [n for n in served() if n.name == package]
    assert {bound.operator for bound in needed.specifier} == {">=", "<"}


def served() -> list[Requirement]:
    """What the extras `serve` and `cuda` ask for beside mlx's backend."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(line) for line in project["optional-dependencies"]["without-backend"]]


def test_commands_look_for_all_that_the_extra_installs() -> None:
    modules = {BOUNDED.get(n.name, n.name.replace("-", "_")) for n in served()}
    assert modules == set(SERVE_PACKAGES)


def test_what_we_import_of_them_is_what_is_looked_at_here() -> None:
    found = {module for name in NAMES for module in modules(PATHS[name])}
    insides = {module for module in found if module.split(".")[0] in BOUNDED.values()}
    assert {m for m in insides if not any(o.startswith(f"{m}.") for o in insides)} == IMPORTED


@pytest.fixture(scope="module", params=["e2b-tiny", "a4b-tiny", "31b-tiny"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return load_pair(checkpoint(request.param), None, "float32")


def test_mlx_lms_modules_have_the_parts_that_we_reach_into(pair: Pair) -> None:
    model, text = pair.target, pair.target.model
    assert lacking(model, MODEL) == lacking(text, TEXT) == []
    head = text.embed_tokens if model.tie_word_embeddings else model
    assert hasattr(head, "as_linear" if model.tie_word_embeddings else "lm_head")
    for layer in text.layers:
        assert lacking(layer, LAYER) == lacking(layer.self_attn, ATTENTION) == []
        attention = layer.self_attn
        assert not attention.has_kv or lacking(attention, OWN_KV) == []
        assert attention.use_k_eq_v or not attention.has_kv or hasattr(attention, "v_proj")
        assert layer.layer_type in ("sliding_attention", "full_attention")
        assert not text.hidden_size_per_layer_input or lacking(layer, PER_LAYER) == []
        assert (
            not layer.enable_moe or lacking(layer, EXPERTS) == lacking(layer.router, ROUTER) == []
        )


def lacking(module: nn.Module, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if not hasattr(module, name)]


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (gemma4_text.logit_softcap, ["softcap", "x"]),
        (gemma4_text.MLP.__init__, ["self", "config", "layer_idx"]),
        (gemma4_text.Model.sanitize, ["self", "weights"]),
        (ReflectionServicer.__init__, ["self", "service_names", "pool"]),
        (H11Protocol.__init__, ["self", "config", "server_state", "app_state", "_loop"]),
        (ServerState.__init__, ["self"]),
        (ReflectionServicer.ServerReflectionInfo, ["self", "request_iterator", "unused_context"]),
    ],
)
def test_functions_take_what_we_give_them(function: Any, parameters: list[str]) -> None:
    assert list(inspect.signature(function).parameters) == parameters


def test_classes_that_we_build_or_look_for_are_modules() -> None:
    assert issubclass(switch_layers.QuantizedSwitchLinear, nn.Module)
    assert {"dims", "base", "traditional"} <= set(
        inspect.signature(rope_utils.initialize_rope).parameters
    )


def test_a_daemon_imports_mlx_lms_modules_and_not_what_its_package_imports() -> None:
    """Most of a start was that. Whoever imports the package afterwards has all of it."""
    code = """if True:
        import sys
        import sapwood.daemon.process.assemble
        assert not {"mlx_lm", "mlx_lm.utils", "transformers"} & sys.modules.keys()
        import mlx_lm
        from mlx_lm.models.gemma4_text import Model
        from sapwood.model.checkpoint import mlx_lm_modules
        assert Model is mlx_lm_modules.Model and mlx_lm.load"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
