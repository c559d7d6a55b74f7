"""What a question's run leaves behind, one JSON file for each pair, and how files are joined.

- A record holds all that the report of any benchmark holds, and its rows, contestants and pair.
- Only records of one commit and one machine are joined: the newest's. The others are named, never
  mixed in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.peers.contestants import Contestant
from bench.peers.question import Answer, Question
from bench.report import BenchReport

PEERS_SCHEMA = 1
_MACHINE = ("cpu", "cores", "memory_bytes", "system", "device")


@dataclass(frozen=True, slots=True)
class PeersRecord:
    """content: as it lies in the file."""

    content: Mapping[str, Any]

    @property
    def question(self) -> str:
        return str(self.content["question"])

    @property
    def pair(self) -> str:
        return str(self.content["pair"]["name"])

    @property
    def origin(self) -> tuple[str, ...]:
        """What has to be equal for records to be joined: commit, machine, BLAS, length of work."""
        machine = self.content["machine"]
        told = (*(machine[name] for name in _MACHINE), self.content["blas"], self.content["quick"])
        return tuple(map(str, (self.content["commit"], *told)))

    @property
    def measured_at(self) -> str:
        return str(self.content["measured_at"])

    @property
    def file_name(self) -> str:
        return f"{self.question}-{self.pair}.json"


@dataclass(frozen=True, slots=True)
class Joined:
    """records: of one origin, in the order of questions. left_out: those of others."""

    records: tuple[PeersRecord, ...]
    left_out: tuple[PeersRecord, ...]


def record(report: BenchReport, question: Question, answer: Answer) -> PeersRecord:
    plan = question.pair.plan
    content = report.as_json() | {
        "schema": PEERS_SCHEMA,
        "question": question.name,
        "pair": {
            "name": plan.name,
            "title": plan.title,
            "widening": plan.widening,
            "drafter_widening": plan.drafter_widening,
            "noise": plan.noise,
            **question.pair.facts,
        },
        "contestants": [_contestant(c, question) for c in question.contestants],
        "rows": [row.as_json() for row in answer.rows],
    }
    return PeersRecord(json.loads(json.dumps(content)))


def _contestant(contestant: Contestant, question: Question) -> dict[str, Any]:
    """Paths are told from this machine's folders on down: they hold no more than what was set."""
    command = contestant.command(question.pair, 0)
    hidden = {str(question.pair.target): "TARGET", str(question.pair.drafter): "DRAFTER"}
    versions = {} if contestant.environment is None else contestant.environment.versions()
    return {
        "name": contestant.name,
        "title": contestant.title,
        "command": ["python", *(hidden.get(word, word) for word in command[1:])],
        "environ": dict(contestant.environ),
        "versions": versions,
    }


def write_record(made: PeersRecord, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / made.file_name
    path.write_text(json.dumps(made.content, indent=1, ensure_ascii=False) + "\n")
    return path


def read_records(folder: Path) -> list[PeersRecord]:
    """Those of this schema."""
    contents = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return [PeersRecord(c) for c in contents if c.get("schema") == PEERS_SCHEMA and "rows" in c]


def join(records: Sequence[PeersRecord], order: Sequence[str]) -> Joined:
    """order: of the questions."""
    if not records:
        return Joined((), ())
    origin = max(records, key=lambda r: r.measured_at).origin
    ours = [r for r in records if r.origin == origin]
    left_out = [r for r in records if r.origin != origin]
    ours.sort(key=lambda r: (order.index(r.question), r.pair))
    return Joined(tuple(ours), tuple(left_out))
