"""Builds constraints for one loaded model.

- Each is built twice: by a process that may be killed, then here, where it is known to end in time.
- Of JSON the text is compact, with no white space at all: a mask that allows some may be followed
  without end.
- The first mask is computed here: what cannot begin is refused at the door.
"""

from __future__ import annotations

from llguidance import LLMatcher
from llguidance.numpy import allocate_token_bitmask

from sapwood.model.constraints.build_guard import BuildGuard
from sapwood.model.constraints.calls import call_grammar
from sapwood.model.constraints.constraint import Constraint
from sapwood.model.constraints.guide import MaskRows, Walk
from sapwood.model.constraints.mask_worker import MaskWorker
from sapwood.model.constraints.matching import LIMITS, first_line, problem_of
from sapwood.model.constraints.schema import read_schema
from sapwood.model.constraints.spec import ConstraintRefused, ConstraintSpec
from sapwood.model.constraints.vocabulary import Vocabulary


class ConstraintCompiler:
    """Makes Constraints for one loaded model. Thread-safe."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        build_s_max: float,
        build_bytes_max: int,
        mask_s_max: float,
        *,
        takes_lark: bool,
    ) -> None:
        """takes_lark: grammars of clients are built too."""
        self._vocabulary = vocabulary
        self._mask_s_max = mask_s_max
        self._guard = BuildGuard(vocabulary, build_s_max, build_bytes_max)
        self.takes_lark = takes_lark

    def compile(self, spec: ConstraintSpec) -> Constraint:
        """Takes some milliseconds to `build_s_max`. Raises ConstraintRefused."""
        grammar = _grammar_of(spec, self._vocabulary)
        self._guard.check(grammar)
        return self._built(grammar, spec)

    def anything(self) -> Constraint:
        """Which every text without control tokens satisfies: to try out a step with."""
        spec = ConstraintSpec("regex", r"(.|\n)*")
        return self._built(_grammar_of(spec, self._vocabulary), spec)

    def _built(self, grammar: str, spec: ConstraintSpec) -> Constraint:
        vocabulary = self._vocabulary
        matcher = LLMatcher(vocabulary.trie, grammar, log_level=0, limits=LIMITS)
        start = vocabulary.control.call_start
        if spec.talks and not problem_of(matcher):
            assert start is not None
            matcher.consume_token(start)
        first = allocate_token_bitmask(1, vocabulary.size)
        if not problem_of(matcher):
            self._fill(first, matcher)
        if problem := problem_of(matcher):
            raise ConstraintRefused(f"it cannot be built: {first_line(problem)}")
        if not first.any():
            raise ConstraintRefused("no token of the model begins a text that satisfies it")
        return Constraint(matcher, vocabulary, first[0], talks=spec.talks, thinks=spec.thinks)

    def _fill(self, first: MaskRows, matcher: LLMatcher) -> None:
        """Under the clock of all masks; its thread is this one's alone."""
        worker = MaskWorker(threads=1)
        done = worker.compute(first, [Walk(matcher, 0, [])], self._mask_s_max)
        worker.leave()
        if not done:
            raise ConstraintRefused("its first token takes too long to find")

    def close(self) -> None:
        """Whoever builds is let go."""
        self._guard.close()


def _grammar_of(spec: ConstraintSpec, vocabulary: Vocabulary) -> str:
    match spec.kind:
        case "json_schema":
            schema = read_schema(spec.text)
            if schema is False:
                raise ConstraintRefused("nothing satisfies it")
            try:
                return LLMatcher.grammar_from_json_schema(
                    {} if schema is True else schema,
                    overrides={
                        "whitespace_flexible": False,
                        "coerce_one_of": False,
                        "lenient": False,
                    },
                )
            except ValueError:
                raise ConstraintRefused("it is no schema") from None
        case "regex":
            return LLMatcher.grammar_from_regex(_whole(spec.text))
        case "grammar":
            return LLMatcher.grammar_from_lark(spec.text)
        case "calls":
            many = not spec.talks and not spec.once
            return LLMatcher.grammar_from_lark(
                call_grammar(spec.tools, vocabulary.control, many=many)
            )


def _whole(regex: str) -> str:
    """Without the anchors at its ends, which the library does not know: it matches all anyway."""
    begun = regex[1:] if regex.startswith("^") else regex
    body = begun.removesuffix("$")
    escapes = len(body) - len(body.rstrip("\\"))
    return begun if escapes % 2 else body
