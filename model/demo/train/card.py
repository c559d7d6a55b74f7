"""Writes the model card from what was measured: `python -m sapwood.model.demo.train.card DIR`.

DIR holds target/, assistant/ and measured.json; the card becomes its README.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sapwood.model.demo.train.draw import HELD_OUT_OF_256
from sapwood.model.demo.train.shape import DRAFTER_PLAN, ROW, TARGET_PLAN
from sapwood.model.demo.train.things import TEXT, lines

DEEP, SHALLOW = 7, 4


def card(folder: Path) -> str:
    measured = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    held = measured["held_out"]
    return (
        (TEXT / "card.md")
        .read_text(encoding="utf-8")
        .format(
            **sizes(folder, "target"),
            **sizes(folder, "assistant"),
            capitals=len(lines("capitals.txt")),
            held_percent=f"{100 * HELD_OUT_OF_256 / 256:.1f}",
            target_steps=f"{TARGET_PLAN.steps:,}",
            target_tokens=round(TARGET_PLAN.steps * TARGET_PLAN.rows * ROW / 1e6),
            rows=TARGET_PLAN.rows,
            drafter_steps=DRAFTER_PLAN.steps,
            loss=held["loss"],
            next_token=f"{100 * held['next_token']:.1f} %",
            transformers_difference=measured["transformers_difference"],
            prompts=measured["prompts"],
            drafting="\n".join(rows(measured["drafting"])),
            samples="\n\n".join(map(sample_text, measured["samples"])),
        )
    )


def sizes(folder: Path, name: str) -> dict[str, str]:
    """Of the weights; two bytes per parameter, the header left out."""
    size = (folder / name / "model.safetensors").stat().st_size
    return {
        f"{name}_parameters": f"{size / 2 / 1e6:.2f} M",
        f"{name}_size": f"{size / 1e6:.1f} MB",
    }


def rows(drafting: Mapping[str, Mapping[str, Any]]) -> list[str]:
    found = []
    for sampling in ("greedy", "T=1"):
        for position in ("bonus", "last"):
            deep = drafting[f"{sampling}, {position}, depth {DEEP}"]["by_position"]
            shallow = drafting[f"{sampling}, {position}, depth {SHALLOW}"]["tokens_per_round"]
            cells: Sequence[str] = [
                sampling,
                position,
                *(f"{share:.2f}" for share in deep),
                f"{shallow:.2f}",
            ]
            found.append(f"| {' | '.join(cells)} |")
    return found


def sample_text(sample: Mapping[str, str]) -> str:
    """A question, behind the beginning of its system prompt, and the reply."""
    system = sample["system"].split("\n")[0]
    lead = f"*{system[:160]}{'…' if len(sample['system']) > 160 else ''}*  \n" if system else ""
    reply = sample["reply"].replace("\n", "  \n> ")
    return f"{lead}{sample['question']}\n> {reply}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m sapwood.model.demo.train.card", description=__doc__
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    (folder / "README.md").write_text(card(folder), encoding="utf-8")


if __name__ == "__main__":
    main()
