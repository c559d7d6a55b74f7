"""What every matcher of the grammar library is asked, and under which limits.

The library raises for none of it: a matcher that failed looks like one that is finished.
"""

from __future__ import annotations

from llguidance import LLMatcher, LLParserLimits

# Its own bounds on work, by default those of the library; its errors without the grammar's text.
LIMITS = LLParserLimits(verbose_errors=False)
_TOLD_CHARS_MAX = 120


def problem_of(matcher: LLMatcher) -> str:
    """Why a matcher cannot go on, in the library's words; "" where it can."""
    return matcher.get_error().strip() if matcher.is_error() else ""


def first_line(problem: str) -> str:
    """The first line of what the library says of a client's own text, short and printable."""
    line = problem.splitlines()[0] if problem else ""
    return "".join(char if char.isprintable() else "?" for char in line)[:_TOLD_CHARS_MAX]
