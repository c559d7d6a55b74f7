"""One table of reasons: the contract's comment, the documents and gRPC agree with it."""

from __future__ import annotations

import re

import grpc
import pytest

from sapwood.scheduler.outcomes import CancelReason, FinishReason, Outcome
from sapwood.scheduler.reasons import Reason, Status
from tests.test_rooms import ROOT

TRAVELLING = {(reason.status.name, reason.name) for reason in Reason if reason.travels}


def test_statuses_are_grpcs_own() -> None:
    assert {(s.name, s.value) for s in Status} <= {(c.name, c.value[0]) for c in grpc.StatusCode}


def test_every_reason_is_a_member_of_its_own() -> None:
    """Members of equal values would be one, and the others its aliases."""
    assert len(list(Reason)) == len(Reason.__members__) > 20


def test_the_contracts_comment_lists_the_reasons() -> None:
    """A line for each status, indented; names that do not fit go on below."""
    head = (ROOT / "proto/sapwood/v1/generation.proto").read_text().partition("syntax =")[0]
    listed, status = set(), ""
    for line in re.findall(r"^//   (.+)$", head, re.MULTILINE):
        if not line.startswith(" "):
            status, _, line = line.partition(" ")
        listed |= {(status, name) for name in re.findall(r"\w+", line)}
    assert listed == TRAVELLING


def test_the_documents_table_lists_the_reasons() -> None:
    text = (ROOT / "docs/errors.md").read_text()
    rows = re.findall(r"^\| (\w+) \| ([^|]+) \|", text, re.MULTILINE)
    listed = {(status, name) for status, names in rows for name in re.findall(r"`(\w+)`", names)}
    assert listed == TRAVELLING


@pytest.mark.parametrize("reason", FinishReason)
def test_a_finish_is_an_outcome(reason: FinishReason) -> None:
    assert reason.outcome is Outcome(reason.value)


def test_a_cancel_says_what_it_counts_as() -> None:
    assert {reason.outcome for reason in CancelReason} == {
        Outcome.CANCELLED,
        Outcome.DEADLINE,
        Outcome.FAILED,
    }
