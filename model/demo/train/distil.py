"""Distils the drafter from the frozen target, unrolled over its own feedback.

At draft j of position P the drafter has read the row up to token P + j - 1 and is to say what the
target says there: both read the row's own tokens, because later drafts count only where the earlier
ones were accepted. Rows are new ones of the corpus, which the target has learnt so well that what
it writes itself is hardly different.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sapwood.model.demo.train.drafter import DrafterNet, shifted, views
from sapwood.model.demo.train.learn import TokenRows
from sapwood.model.demo.train.shape import SEED, Plan
from sapwood.model.demo.train.target import TargetNet
from sapwood.model.demo.train.work import train

DRAFTS = 5  # unrolled


def later(x: Tensor, count: int) -> Tensor:
    """At P what was at P + count."""
    return torch.roll(x, -count, 1)


def draft_loss(model: DrafterNet, y: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy against the target's own distribution, wanted."""
    return F.cross_entropy(model.logits(y), wanted)


class DraftLoss:
    """The mean loss over drafts 1 to DRAFTS of every reply token."""

    def __init__(self, target: TargetNet, rows: TokenRows, compiled: bool) -> None:
        self.target, self.rows = target.requires_grad_(False).eval(), rows
        self.read, self.draft, self.head = target.forward, DrafterNet.forward, draft_loss
        if compiled:
            self.read = torch.compile(target.forward)
            self.draft = torch.compile(DrafterNet.forward)
            self.head = torch.compile(draft_loss, dynamic=True)

    def __call__(self, model: nn.Module, step: int, rank: int) -> Tensor:
        assert isinstance(model, DrafterNet)
        tokens, documents, learn = self.rows.batch(step, rank)
        chance = torch.Generator().manual_seed(SEED + 2 * step + rank)
        bonus = torch.randint(0, 2, (len(tokens),), generator=chance)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                states, kept = self.read(tokens, documents)
                seen = views(kept, documents, bonus)
                embedded = self.target.embed(tokens)
                # asked: what follows is a reply's token. replied: the token itself is one.
                asked, replied = F.pad(learn, (0, 1)), F.pad(learn, (1, 0))
                said = self.target.logits(states[asked]).softmax(-1)
                line = asked.flatten().cumsum(0).view_as(asked) - 1  # in `said`
            counted, h = replied, shifted(states)
            losses = []
            for j in range(DRAFTS):
                counted = counted & later(replied, j + 1)
                counted[:, -(j + 1) :] = False
                y, h = self.draft(model, later(embedded, j), h, seen)
                wanted = said[later(line, j)[counted]]
                losses.append(self.head(model, y[counted], wanted))
        return torch.stack(losses).mean()


def distil(rank: int, folder: Path, plan: Plan, compiled: bool) -> None:
    target = TargetNet()
    target.load_state_dict(torch.load(folder / "target.pt", weights_only=True)["model"])
    loss = DraftLoss(target, TokenRows(folder / "drafts.npz", plan.rows), compiled)
    train(rank, DrafterNet(), loss, plan, folder / "drafter.pt")
