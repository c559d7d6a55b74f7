"""Two processes with one thread each that train one model together.

On two cores this is faster than one process with two threads. Both hold all weights, take every
second row of a step and average their gradients, so that they stay equal; rank 0 writes the
checkpoints.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch import Tensor, nn

from sapwood.model.demo.train.shape import SEED, Plan

PROCESSES = 2
Loss = Callable[[nn.Module, int, int], Tensor]


def in_processes(function: Callable[..., None], folder: Path, *rest: object) -> None:
    """function(rank, folder, *rest) in every process; they meet through a file."""
    meeting = (folder / "meeting").resolve()  # its URL knows no relative paths
    meeting.unlink(missing_ok=True)
    processes.spawn(enter, (function, str(meeting), folder, *rest), PROCESSES)
    meeting.unlink(missing_ok=True)


def enter(rank: int, function: Callable[..., None], meeting: str, *rest: object) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=PROCESSES
    )
    try:
        function(rank, *rest)
    finally:
        dist.destroy_process_group()


class Optimizers:
    """Muon for the matrices inside the layers, Adam for embeddings, norms and scalars."""

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        named = list(model.named_parameters())
        matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in named if p.ndim != 2 or "embed" in name]
        self.plan = plan
        self.all: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(matrices, lr=plan.matrix_rate, weight_decay=0.0),
            torch.optim.Adam(others, lr=plan.other_rate, betas=(0.9, 0.95), fused=True),
        )

    def step(self, step: int) -> None:
        rates = (self.plan.matrix_rate, self.plan.other_rate)
        for optimizer, rate in zip(self.all, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * self.plan.rate(step)
            optimizer.step()
            optimizer.zero_grad()

    def state(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self.all]

    def load(self, states: list[dict[str, Any]]) -> None:
        for optimizer, state in zip(self.all, states, strict=True):
            optimizer.load_state_dict(state)


def average(parameters: Iterable[nn.Parameter], loss: Tensor) -> float:
    """Averages the gradients over the processes, clips them to norm 1 and returns the mean loss."""
    held = [p for p in parameters if p.grad is not None]
    flat = torch.cat([p.grad.flatten() for p in held if p.grad is not None] + [loss.view(1)])
    dist.all_reduce(flat)
    flat /= PROCESSES
    flat[:-1] *= (1 / (flat[:-1].norm() + 1e-6)).clamp(max=1.0)
    at = 0
    for p in held:
        p.grad = flat[at : at + p.numel()].view_as(p)
        at += p.numel()
    return float(flat[-1])


def train(rank: int, model: nn.Module, loss: Loss, plan: Plan, checkpoint: Path) -> None:
    """All steps of the plan, from the checkpoint on if there is one. loss(model, step, rank)"""
    optimizers, first = Optimizers(model, plan), 0
    if checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizers.load(kept["optimizers"])
        first = kept["step"]
    began = time.monotonic()
    for step in range(first, plan.until or plan.steps):
        value = loss(model, step, rank)
        value.backward()
        mean = average(model.parameters(), value.detach())
        optimizers.step(step)
        done = step + 1
        if rank == 0 and (done % 10 == 0 or done == plan.steps):
            pace = (time.monotonic() - began) / (done - first)
            left = pace * (plan.steps - done) / 60
            print(f"step {done}/{plan.steps} loss {mean:.3f}, {left:.0f} min left", flush=True)
        if rank == 0 and (done % plan.every == 0 or done == plan.steps):
            state = {"model": model.state_dict(), "optimizers": optimizers.state(), "step": done}
            save_state(state, checkpoint)


def save_state(state: dict[str, Any], path: Path) -> None:
    """Whole or not at all, so that an interruption leaves the last checkpoint."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)
