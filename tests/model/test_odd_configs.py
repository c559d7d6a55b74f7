"""Odd configs: each is computed as transformers computes it, or refused with the key that is odd.

The cases and the weights are made by tests/fixtures/make_odd; what transformers makes of them was
recorded there, outside of these tests. Another recording is compared where SAPWOOD_ODD names one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from sapwood.cache.arrays.batch import Batch, Span
from sapwood.cache.arrays.window import WindowStore
from sapwood.model.assistant import Assistant
from sapwood.model.checkpoint.config import AssistantConfig, TargetConfig
from sapwood.model.checkpoint.config_file import read_assistant_config, read_target_config
from sapwood.model.checkpoint.files import ModelDirectory, ModelRefused
from sapwood.model.checkpoint.safetensors import weight_files
from sapwood.model.gemma4 import PackedGemma4
from sapwood.model.pair import check_fit
from tests.fixtures.make_odd.cases import (
    DRAFTS,
    FIRST_PLACE,
    VOCABULARY,
    Case,
    Document,
    all_cases,
    tokens,
    weights,
)
from tests.model.packed import TOLERANCE, Feed, Sequences, largest
from tests.model.reference import FIXTURES, Array, load_assistant, load_target

#: what transformers cannot run and we can: it wants an integer where none is meant
BEYOND = ("per-layer null",)
SLICES = (5, 1, FIRST_PLACE - 6)
ROUND, KEPT = 4, 3


class Recorded:
    """What transformers said of every case."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as arrays:
            self.arrays: Mapping[str, Array] = dict(arrays)
        self.facts: Mapping[str, Any] = json.loads(str(self.arrays["facts"]))
        made = self.facts["made"]
        self.cases = {case.name: case for case in all_cases(made["drawn"], made["seed"])}

    def shapes(self, name: str, part: str) -> Mapping[str, list[int]] | None:
        """Of the target's or the drafter's tensors; None where transformers computes nothing."""
        told = self.facts[name].get(part)
        return told if isinstance(told, dict) and f"{name}.{_MADE[part]}" in self.arrays else None


_MADE = {"target": "logits", "drafter": "drafts"}


@cache
def recorded() -> Recorded:
    return Recorded(Path(os.environ.get("SAPWOOD_ODD", FIXTURES / "golden" / "odd.npz")))


def written(
    document: Document, shapes: Mapping[str, list[int]] | None, place: Path
) -> ModelDirectory:
    """A checkpoint below `place`, without weights where there are no shapes."""
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(document))
    if shapes is not None:
        tensors = {name: mx.array(array) for name, array in weights(shapes).items()}
        mx.save_safetensors(str(place / "model.safetensors"), tensors, {"format": "pt"})
    return ModelDirectory(place)


def checked(
    target: ModelDirectory, drafter: ModelDirectory
) -> tuple[TargetConfig, AssistantConfig]:
    """Both configs, read before any weight. Raises ModelRefused."""
    config, draft_config = read_target_config(target), read_assistant_config(drafter)
    check_fit(config, draft_config)
    return config, draft_config


class Ours:
    """A case as it is loaded and computed here: packed, in slices, then in rounds with a reject."""

    def __init__(self, case: Case, place: Path) -> None:
        """Raises ModelRefused."""
        shapes = recorded().shapes(case.name, "target")
        draft_shapes = recorded().shapes(case.name, "drafter")
        target = written(case.target, shapes, place / "target")
        drafter = written(case.drafter, draft_shapes, place / "drafter")
        config, draft_config = checked(target, drafter)
        self.assistant: Assistant | None = None
        if shapes is not None:
            model = load_target(weight_files(target), config, None)
            packed = PackedGemma4(model, config.placeholders)
            self.sequences = Sequences(packed, config.text.window_tokens)
        if draft_shapes is not None:
            self.assistant = load_assistant(weight_files(drafter), draft_config, None)

    def logits(self) -> Array:
        """[places, V] from FIRST_PLACE on."""
        text, sequences = tokens(), self.sequences
        sequences.admit(0)
        for count in SLICES:
            at = sequences.caches.offset(0)
            sequences.step({0: Feed(text[at : at + count])})
        rows: list[Array] = []
        while (at := sequences.caches.offset(0)) < len(text):
            right = text[at : at + KEPT]
            rows.append(sequences.step({0: Feed([*right, 3], kept=len(right))})[0][: len(right)])
        return np.concatenate(rows)

    def drafts(self, first: int) -> Array:
        """[DRAFTS, V] behind `logits`; what an ordered head leaves out is -inf."""
        assert self.assistant is not None
        sequences, embed = self.sequences, self.sequences.model.embed
        caches, at = sequences.caches, len(tokens())
        batch = Batch([Span(0, at - 1, 1)])
        stores = {kind: caches.stores[i] for kind, i in sequences.model.donors.items()}
        views = {
            kind: store.view(batch, caches.window + 1)
            if isinstance(store, WindowStore)
            else store.view(batch)
            for kind, store in stores.items()
        }
        token, hidden, made = mx.array([first]), sequences.frontier[0][None], []
        turns = self.assistant.turns(mx.array([at]))
        for _ in range(DRAFTS):
            said, hidden = self.assistant.step(
                embed(token), hidden, turns, lambda kind, q: views[kind].attend(q)
            )
            made.append(spread(np.array(said.logits)[0], said.ids))
            token = mx.array([int(made[-1].argmax())])
        return np.stack(made)


def spread(logits: Array, ids: mx.array | None) -> Array:
    if ids is None:
        return logits
    row = np.full(VOCABULARY, -np.inf, np.float32)
    row[np.array(ids)[0]] = logits
    return row


def compared(case: Case, place: Path) -> str:
    """The refusal of a case, or "" for one that was computed and compared."""
    expected = recorded().arrays
    try:
        ours = Ours(case, place)
    except ModelRefused as refused:
        return str(refused)
    if recorded().shapes(case.name, "target") is None:
        assert case.name in BEYOND, f"transformers: {recorded().facts[case.name]['target']}"
        return ""
    assert largest(ours.logits(), expected[f"{case.name}.logits"]) <= TOLERANCE
    assert ours.assistant is not None, recorded().facts[case.name]["drafter"]
    theirs = expected[f"{case.name}.drafts"]
    drafts = ours.drafts(int(expected[f"{case.name}.logits"][-1].argmax()))
    known = np.isfinite(drafts)
    assert known.any(axis=1).all()
    assert np.abs(drafts[known] - theirs[known]).max() <= TOLERANCE
    assert (theirs[~known] < drafts.max()).all()
    return ""


@pytest.mark.parametrize("name", recorded().cases)
def test_what_transformers_computes_is_computed_or_refused_by_its_key(
    name: str, tmp_path: Path
) -> None:
    case = recorded().cases[name]
    told = compared(case, tmp_path)
    assert "\n" not in told
    if not name.startswith("drawn"):
        assert (case.refused or "") in told and bool(case.refused) == bool(told), told


def test_most_of_what_is_drawn_is_computed(tmp_path: Path) -> None:
    """A reader that refuses whatever is odd would pass all the others."""
    computed = 0
    drawn = [case for name, case in recorded().cases.items() if name.startswith("drawn")]
    for i, case in enumerate(drawn):
        target = written(case.target, None, tmp_path / str(i) / "target")
        drafter = written(case.drafter, None, tmp_path / str(i) / "drafter")
        with suppress(ModelRefused):
            checked(target, drafter)
            computed += 1
    assert computed > 0.6 * len(drawn)
