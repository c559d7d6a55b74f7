"""The whole way in little, with the checks that need torch: a minute or two.

- The target is what transformers computes, the drafter is loaded by it with nothing left over.
- Packed rows do not see each other, and a query of the drafter sees what it does in the daemon.
- A run that was interrupted ends in the same weights as one that was not.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sapwood.model.demo.train.drafter import DrafterNet, shifted, views
from sapwood.model.demo.train.export import load_with_transformers
from sapwood.model.demo.train.learn import TokenRows, learn
from sapwood.model.demo.train.shape import VOCAB, WINDOW, Plan
from sapwood.model.demo.train.target import TargetNet, angles, attend
from sapwood.model.demo.train.work import in_processes

PLAN = Plan(steps=6, rows=2, warmup=2, every=3)
CLOSE = 1e-3


def smoke(folder: Path, make: Callable[[Path, Plan, Plan, bool], None]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    make(folder, PLAN, replace(PLAN, steps=3), False)
    with torch.no_grad():
        target_is_that_of_transformers(folder)
        rows_are_apart()
        drafter_sees_what_it_should()
    resumed_is_uninterrupted(folder)
    print("== smoke run passed", flush=True)


def target_is_that_of_transformers(folder: Path) -> None:
    theirs, ours = load_with_transformers(folder / "pair" / "target"), TargetNet()
    load_with_transformers(folder / "pair" / "assistant")
    ours.load_state_dict({name: weight for name, weight in theirs.model.state_dict().items()})
    tokens, documents, _ = TokenRows(folder / "held.npz", 1).take(slice(0, 1))
    first = documents == 0
    states, _ = ours(tokens, documents)
    gap = (ours.logits(states)[first] - theirs(tokens[first][None]).logits[0]).abs().max()
    assert gap < CLOSE, f"transformers differs by {gap:.1e}"


def random_rows() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, VOCAB, (2, 1024), generator=torch.Generator().manual_seed(1))
    return tokens, (torch.arange(1024) // 300).expand(2, -1)


def rows_are_apart() -> None:
    target, (tokens, documents) = TargetNet(), random_rows()
    packed, _ = target(tokens, documents)
    alone, _ = target(F.pad(tokens[:1, 300:600], (0, 724)), torch.zeros(1, 1024, dtype=torch.long))
    assert torch.allclose(alone[:, :300], packed[:1, 300:600], atol=CLOSE)


def drafter_sees_what_it_should() -> None:
    """One query by hand, at both draft positions, beyond a window of its document."""
    target, drafter, (tokens, documents) = TargetNet(), DrafterNet(), random_rows()
    states, kept = target(tokens, documents)
    begin, at = 600, 750
    embedded = target.embed(tokens)
    for bonus in (0, 1):
        seen = views(kept, documents, torch.tensor([bonus, bonus]))
        y, _ = drafter(embedded, shifted(states), seen)
        x = drafter.pre_projection(torch.cat([embedded[:, at], states[:, at - 1]], -1))[:, None]
        for layer in drafter.layers:
            near = max(begin, at - WINDOW - bonus) if layer.sliding else begin
            kind = "sliding_attention" if layer.sliding else "full_attention"
            turn = angles(kind, layer.self_attn.dims, torch.tensor([at - 1 + bonus]))
            q = layer.self_attn.queries(layer.input_layernorm(x), *turn)
            k, v = (part[:, near:at] for part in kept[layer.sliding])
            mixed = attend(q, k, v, torch.zeros(2, 1, at - near)).flatten(2)
            x = x + layer.post_attention_layernorm(layer.self_attn.o_proj(mixed))
            wide = layer.mlp(layer.pre_feedforward_layernorm(x))
            x = (x + layer.post_feedforward_layernorm(wide)) * layer.layer_scalar
        assert torch.allclose(drafter.norm(x)[:, 0], y[:, at], atol=CLOSE), bonus


def resumed_is_uninterrupted(folder: Path) -> None:
    again = folder / "again"
    again.mkdir()
    for name in ("rows.npz", "held.npz"):
        shutil.copyfile(folder / name, again / name)
    in_processes(learn, again, replace(PLAN, until=4), False)  # its last checkpoint is of step 3
    in_processes(learn, again, PLAN, False)
    one, two = (torch.load(at / "target.pt", weights_only=True) for at in (folder, again))
    wrong = [name for name, was in one["model"].items() if not was.equal(two["model"][name])]
    assert not wrong, f"resumed, these weights differ: {wrong}"
