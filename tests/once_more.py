"""After `make test` failed: its failed tests once more, each alone, if they are few.

- A test that passes alone is told by name, at the end and on its own line: it is racy or hurt by
  neighbours, which is a fault of the test or of the product, to be mended and not to be left.
- More than FEW failures are no chance: nothing runs again. What fails alone too is a failure.
- What failed is read where pytest itself keeps it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FEW = 3
LAST_FAILED = Path(".pytest_cache/v/cache/lastfailed")


def failed_last(file: Path = LAST_FAILED) -> list[str]:
    """Ids of tests, none where pytest broke before it kept any."""
    return sorted(json.loads(file.read_text())) if file.exists() else []


def main() -> int:
    """0: all that failed pass alone."""
    failed = failed_last()
    if not 0 < len(failed) <= FEW:
        return 1
    alone = [sys.executable, "-m", "pytest", "--quiet", "--numprocesses", "0"]
    broken = [test for test in failed if subprocess.run([*alone, test], check=False).returncode]
    for test in failed:
        print(f"{'FAILED, alone too' if test in broken else 'FLAKY, passed alone'}: {test}")
    return min(len(broken), 1)


if __name__ == "__main__":
    sys.exit(main())
