"""What ends a command: its exit code, and one sentence for the operator.

Exit codes: 0 done, 1 failed (StartError, a fault while serving), 2 bad usage (UsageError), 130
Ctrl-C. docs/signals.md has them all.
"""

from __future__ import annotations


class UsageError(Exception):
    """Raised when a flag, a setting or a value cannot be used: exit code 2."""


class StartError(Exception):
    """Raised when the daemon cannot start to serve: exit code 1."""
