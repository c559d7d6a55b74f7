"""Trains the target on the packed rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sapwood.model.demo.train.shape import Plan
from sapwood.model.demo.train.target import TargetNet
from sapwood.model.demo.train.work import PROCESSES, train

TokenBatch = tuple[Tensor, Tensor, Tensor]


class TokenRows:
    """Packed rows of a file; a step takes the next rows, each process every second one."""

    def __init__(self, path: Path, per_step: int) -> None:
        held = np.load(path)
        self.tokens, self.documents, self.learn = (
            held[name] for name in ("tokens", "documents", "learn")
        )
        self.per_step = per_step

    def batch(self, step: int, rank: int) -> TokenBatch:
        return self.take(slice(step * self.per_step + rank, (step + 1) * self.per_step, PROCESSES))

    def take(self, rows: slice) -> TokenBatch:
        """tokens and documents [n, ROW], and which of tokens[:, 1:] are learnt."""
        learn = torch.from_numpy(self.learn[rows][:, 1:].copy())
        same = np.diff(self.documents[rows].astype(int), axis=1) == 0
        tokens, documents = (
            torch.from_numpy(part[rows].astype(np.int64)) for part in (self.tokens, self.documents)
        )
        return tokens, documents, learn & torch.from_numpy(same)


def heads_loss(model: nn.Module, states: Tensor, wanted: Tensor) -> Tensor:
    assert isinstance(model, TargetNet)
    return F.cross_entropy(model.logits(states), wanted)


class TargetLoss:
    """The mean loss over the learnt tokens of a process's rows; compiled once."""

    def __init__(self, model: TargetNet, rows: TokenRows, compiled: bool) -> None:
        self.rows = rows
        self.body, self.head = model.forward, heads_loss
        if compiled:
            self.body = torch.compile(model.forward)
            self.head = torch.compile(heads_loss, dynamic=True)

    def __call__(self, model: nn.Module, step: int, rank: int) -> Tensor:
        return self.of(model, self.rows.batch(step, rank))

    def of(self, model: nn.Module, batch: TokenBatch) -> Tensor:
        tokens, documents, learn = batch
        with torch.autocast("cpu", torch.bfloat16):
            states, _ = self.body(tokens, documents)
            return self.head(model, states[:, :-1][learn], tokens[:, 1:][learn])


def learn(rank: int, folder: Path, plan: Plan, compiled: bool) -> None:
    model = TargetNet()
    loss = TargetLoss(model, TokenRows(folder / "rows.npz", plan.rows), compiled)
    train(rank, model, loss, plan, folder / "target.pt")
