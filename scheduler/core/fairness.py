"""Whose turn it is: slots and the device's time among principals, max-min by weight (ADR 013).

- A principal is entitled to as many slots as it has streams, or by weight as many as all who get
  fewer than they ask for: water-filling, so in fractions. Who has a whole slot less than that goes
  first; a fraction is decided by time.
- `level` is the device time that those who wanted more have had, by weight. Who is behind it by a
  fifth of the dearest step of late gets the fraction of a row, from who has more than its own.
  Nobody is further behind the level than the dearest step, nor ahead of it by more than half of
  one: what was before that is forgotten. Who has had more by having been the oldest, whom nobody
  parks, would pay it back in one wait.
- Equal slots are equal times only where rows cost alike: who stays behind has its share of slots
  tilted up, slowly, and who stays ahead down.
- Time is charged while somebody is short, and at no other: what nobody else wanted is free.
- A slot that falls free is kept for a plan, beside others of the same turn, for who ended there and
  is entitled to it: its client learns of the end with that plan, and asks again before the next.
- Where one principal is alone nothing is reckoned but what things cost.
"""

from __future__ import annotations

from collections import Counter, abc

from sapwood.scheduler.core.line import Line
from sapwood.scheduler.core.roster import Roster
from sapwood.scheduler.core.sequence import Sequence, SequenceState
from sapwood.scheduler.events import Priority, Request
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.plan import StepPlan
from sapwood.scheduler.policy.device_time import DeviceTime, Work
from sapwood.scheduler.policy.shares import max_min
from sapwood.scheduler.policy.slice_cost import Reading

SLIVER = 1e-9  # of a slot: what floats lose
WHOLE_MIN = 0.9  # of a slot: counts as one, so that a tilt takes none away
BEHIND_MIN = 0.18  # dearest steps, that are worth a row
AHEAD_MAX = 0.5  # dearest steps
TILT = 0.003  # of a share, in each step, for each dearest step that one is behind
TILT_MAX = 4.0
OWED_MORE = 1.25  # times its part of a step's time: who is behind is to come level
OWED_MAX = 0.75  # of a step's time


class Fairness:
    """The accounts of principals. `begin` comes first in a plan, `charge` in its commit."""

    def __init__(self, limits: Limits, roster: Roster) -> None:
        self.time = DeviceTime()
        self._limits, self._roster = limits, roster
        self._level = 0.0
        self._had: dict[str, float] = {}  # device time by weight, as the level is
        self._weights: dict[str, float] = {}
        self._tilts: dict[str, float] = {}  # by what shares of slots differ from those of time
        self._streams: Counter[str] = Counter()
        self._entitled: dict[str, float] = {}  # slots; of nobody where one is alone
        self._left: Counter[str] = Counter()  # streams that ended before this plan
        self._has_batch = False

    def begin(self) -> None:
        """Who is there, and what is whose, for one plan."""
        streams, weights = Counter[str](), dict[str, float]()
        live = self._roster.live.values()
        self._has_batch = any(s.request.priority is Priority.BATCH for s in live)
        self._left = Counter(s.request.principal for s in self._roster.leaving)
        for sequence in (*live, *self._roster.leaving):
            streams[sequence.request.principal] += 1
            weights[sequence.request.principal] = sequence.request.weight
        for line in self._roster.waiting.lines:
            newest = next(reversed(line.sequences.values()))
            streams[line.principal] += len(line.sequences)
            weights[line.principal] = newest.request.weight
        self._streams, self._weights = streams, weights
        self._entitled = self._entitle(self._limits.slots_max) if len(streams) > 1 else {}
        if self._entitled and len(self._had) > len(streams) + self._limits.accounts_max:
            self._had = {name: had for name, had in self._had.items() if name in streams}
            self._tilts = {name: tilt for name, tilt in self._tilts.items() if name in streams}
        for name in self._entitled:
            self._had.setdefault(name, self._level)

    def order(self) -> list[Line]:
        """Lines in the order of their turns, from who is furthest below its share."""
        lines, rows = list(self._roster.waiting.lines), self._roster.rows
        if self._roster.free_slots <= self._kept(rows):
            lines = [line for line in lines if self._is_whole(line.principal, rows)]
        if len(lines) > 1:
            lines.sort(key=lambda line: self._turn(line, rows))
        return lines

    def victim(self, line: Line, step: int) -> Sequence | None:
        """Whose row goes for somebody of `line`, where all slots are taken. None: no one's.

        Never the oldest, and nobody who might then be parked too often for want of memory.
        """
        if not self._entitled and not self._has_batch:
            return None
        others = self._parkable(step)
        over = self._over(others, line, step)
        own = [s for s in others if _less_urgent(s, line)]
        return over or max(own, key=_rank, default=None)

    def victim_for_room(self, name: str, step: int) -> Sequence | None:
        """Whose row goes for somebody of `name` whom memory has refused, as `victim` says.

        Shares are of the rows that there are.
        """
        if not self._entitled:
            return None
        rows, entitled = self._roster.rows, self._entitle(len(self._roster.live))
        if entitled[name] - rows[name] < WHOLE_MIN - SLIVER:
            return None
        over = {n: count - entitled[n] for n, count in rows.items()}
        others = [s for s in self._parkable(step) if over[s.request.principal] > 1.0 - WHOLE_MIN]
        return max(others, key=lambda s: (over[s.request.principal], s.rank), default=None)

    def _parkable(self, step: int) -> list[Sequence]:
        """Those that live but for the oldest, and who might be parked too often for want of memory.

        Whoever has decoded for long may go as often as that.
        """
        limits, others = self._limits, sorted(self._roster.live.values(), key=_rank)[1:]
        return [s for s in others if s.forced + 1 < limits.parks_max or self._had_long(s, step)]

    def _had_long(self, sequence: Sequence, step: int) -> bool:
        # Twice as long where its principal has no whole slot: else many with a stream each would
        # park each other in nearly every step.
        decodes = sequence.state is SequenceState.DECODE
        whole = self._entitled.get(sequence.request.principal, 1.0) >= WHOLE_MIN
        steps = self._limits.yield_steps_min * (1 if whole else 2)
        return decodes and step - sequence.served_step >= steps

    def turns_before(self, request: Request) -> float:
        """How many times a request's time with a slot pass before this one has one.

        0 where a slot is free for it, or somebody's goes for it.
        """
        self.begin()
        name, roster = request.principal, self._roster
        self._streams[name] += 1
        self._weights[name] = request.weight
        share = max(1.0, self._entitle(self._limits.slots_max)[name])
        own = [line for line in roster.waiting.lines if line.principal == name]
        ahead = [len(line.sequences) for line in own if line.priority <= request.priority]
        others = len(roster.waiting) - sum(ahead)
        free = roster.free_slots + len(roster.leaving) - others
        rows = self._roster.rows[name]
        lacking = rows + sum(ahead) + 1 - max(share, rows + free)
        return max(0.0, lacking / share)

    def furthest_over(self, sequences: abc.Sequence[Sequence]) -> Sequence:
        """Of these whose row goes where memory is short: the youngest of who has most."""
        rows, fewer = self._roster.rows, len(self._roster.live) - 1
        entitled = self._entitle(fewer) if self._entitled else {}

        def over(sequence: Sequence) -> tuple[float, int]:
            name = sequence.request.principal
            return rows[name] - entitled.get(name, 0.0), sequence.rank

        return max(sequences, key=over)

    def parts(
        self, demands: abc.Mapping[str, float], seconds: float, level: float
    ) -> dict[str, float]:
        """Of the seconds of a step's prompts what is whose, who is furthest behind first.

        Who is behind has as many more as make up for it. level: how slow the device is now, which
        `seconds` and `demands` know nothing of.
        """
        names = sorted(demands, key=self._behind, reverse=True)
        wanted, weights = [demands[n] for n in names], [self._weights[n] for n in names]
        shares = max_min(wanted, weights, seconds)
        more = [self._behind(name) / level for name in names]
        return {n: max(0.0, s + m) for n, s, m in zip(names, shares, more, strict=True)}

    def owed(self, readers: set[str]) -> float | None:
        """Of a step's time what is due to those who read; None: as much as the pace allows.

        More where some of them are behind those who contend with them, whether those read or not.
        0, which is what prompts always have, where all who read have had too much and others too
        little.
        """
        short = readers.union(line.principal for line in self._roster.waiting.lines)
        if not self._entitled or len(short) < 2:
            return None
        behind = [name for name in readers if self._steps_behind(name) >= BEHIND_MIN]
        if behind and len(behind) < len(short):
            weights = self._weights
            part = sum(weights[n] for n in sorted(behind)) / sum(weights[n] for n in sorted(short))
            return min(OWED_MAX, OWED_MORE * part)
        late = any(self._steps_behind(name) >= BEHIND_MIN for name in short - readers)
        return 0.0 if late and all(self._steps_behind(n) <= -BEHIND_MIN for n in readers) else None

    def charge(
        self,
        plan: StepPlan,
        decoding: abc.Iterable[Sequence],
        prefilling: abc.Iterable[Sequence],
        seconds: float,
    ) -> None:
        """What the step took, and of it each principal: as much as was learned, not as it took."""
        work = _work(plan)
        self.time.observe(work, seconds)
        if not self._entitled:
            return
        taken: dict[str, float] = dict.fromkeys(self._entitled, 0.0)
        for sequence, row in zip(decoding, plan.decodes, strict=True):
            price = self.time.row(work.parts, row.depth + 1, row.start)
            taken[sequence.request.principal] += price
        for sequence, piece in zip(prefilling, plan.prefills, strict=True):
            price = self.time.slice(work.parts, piece.start, len(piece.tokens))
            taken[sequence.request.principal] += price
        self._charge(taken, self._short(plan))

    def _charge(self, taken: abc.Mapping[str, float], short: set[str]) -> None:
        if not short:
            return
        weights, ordered = self._weights, sorted(short)  # sums in one order, whoever replays them
        self._level += sum(taken[n] for n in ordered) / sum(weights[n] for n in ordered)
        for name in self._entitled:
            bound = self.time.dearest / weights[name]
            had = self._had[name] + taken[name] / weights[name]
            self._had[name] = min(max(had, self._level - bound), self._level + AHEAD_MAX * bound)
            self._tilts[name] = self._tilted(name, name in short)

    def _tilted(self, name: str, short: bool) -> float:
        """A slot of one takes more time than one of another: whoever is behind has more of them."""
        tilt = self._tilts.get(name, 1.0)
        if not short:
            return tilt + TILT * (1.0 - tilt)
        tilt *= 1.0 + TILT * self._steps_behind(name)
        return min(max(tilt, 1.0 / TILT_MAX), TILT_MAX)

    def _short(self, plan: StepPlan) -> set[str]:
        """Who wants more than it has, or has more than its slots."""
        drawn = {piece.slot for piece in plan.prefills if piece.draws}
        short = {line.principal for line in self._roster.waiting.lines}
        for sequence in self._roster.live.values():
            if sequence.state is SequenceState.PREFILL and sequence.slot not in drawn:
                short.add(sequence.request.principal)
        over = {n for n, rows in self._roster.rows.items() if rows > self._entitled[n] + SLIVER}
        return short | over

    def _kept(self, rows: Counter[str]) -> int:
        """Slots for which somebody may come who has just left one; -1 where all may be given."""
        ended = self._left.items() if self._entitled else ()
        kept = [
            min(left, int(self._entitled[n] + 1.0 - WHOLE_MIN + SLIVER) - rows[n])
            for n, left in ended
        ]
        return sum(count for count in kept if count > 0) or -1

    def _is_whole(self, name: str, rows: Counter[str]) -> bool:
        """Whether it is entitled to a whole slot more."""
        return not self._entitled or self._entitled[name] - rows[name] >= WHOLE_MIN - SLIVER

    def _entitle(self, slots: int) -> dict[str, float]:
        names = list(self._streams)
        weights = [self._weights[name] * self._tilts.get(name, 1.0) for name in names]
        shares = max_min([self._streams[name] for name in names], weights, slots)
        return dict(zip(names, shares, strict=True))

    def _behind(self, name: str) -> float:
        """Seconds of device time that it has had less than its share."""
        return (self._level - self._had.get(name, self._level)) * self._weights[name]

    def _steps_behind(self, name: str) -> float:
        """The same in dearest steps, within [-AHEAD_MAX, 1]."""
        return self._behind(name) / (self.time.dearest or 1.0)

    def _turn(self, line: Line, rows: Counter[str]) -> tuple[int, float, bool, Priority]:
        passed = line.passed >= self._limits.passed_max
        return *self._claim(line.principal, rows[line.principal]), not passed, line.priority

    def _claim(self, name: str, rows: int) -> tuple[int, float]:
        """Where it stands with so many rows, when one more is to be given: the least is first.

        With a whole slot less than it is entitled to: by rows, as water rises. Else by its lack.
        """
        if not self._entitled:
            return 0, 0.0
        entitled, behind = self._entitled[name], self._steps_behind(name)
        if entitled - rows >= WHOLE_MIN - SLIVER:
            return 0, (rows + 1 - behind) / self._weights[name]
        return 1, rows - entitled - behind

    def _over(self, others: list[Sequence], line: Line, step: int) -> Sequence | None:
        """Of these who goes for a share of `line`'s principal."""
        if not self._entitled:
            return None
        rows, name, entitled = self._roster.rows, line.principal, self._entitled
        claim = self._claim(name, rows[name])
        whole = not claim[0]
        if not whole and not self._lacks_a_part(name, rows[name]):
            return None
        over = {n: count - entitled[n] for n, count in rows.items()}
        most = 1.0 - WHOLE_MIN if whole else SLIVER
        others = [s for s in others if over[s.request.principal] > most]
        if not whole:
            others = [s for s in others if self._had_long(s, step)]
        if not others:
            return None

        def order(sequence: Sequence) -> tuple[float, Priority, int, int]:
            request, owner = sequence.request, sequence.request.principal
            most = over[owner] - self._steps_behind(owner)
            return most, request.priority, -sequence.parks, sequence.rank

        victim = max(others, key=order)
        theirs = victim.request.principal
        return victim if claim < self._claim(theirs, rows[theirs] - 1) else None

    def _lacks_a_part(self, name: str, rows: int) -> bool:
        within = rows < self._entitled[name] - SLIVER
        return within and self._steps_behind(name) >= BEHIND_MIN


def _work(plan: StepPlan) -> Work:
    return Work(
        parts=len(plan.decodes) + len(plan.prefills),
        decode_tokens=sum(row.depth + 1 for row in plan.decodes),
        context_tokens=sum(row.start for row in plan.decodes),
        reading=Reading.of((p.start, len(p.tokens)) for p in plan.prefills),
    )


def _less_urgent(sequence: Sequence, line: Line) -> bool:
    """Whether its row is the line's principal's own, and nobody waits for it."""
    request = sequence.request
    own = request.principal == line.principal and line.priority is not Priority.BATCH
    return own and request.priority is Priority.BATCH


def _rank(sequence: Sequence) -> int:
    return sequence.rank
