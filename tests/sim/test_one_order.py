"""The core decides alike in every process: nothing of it goes by the order of a set of names."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

from sapwood.scheduler.limits import Limits
from tests.sim.crowd import Client, Crowd
from tests.test_rooms import ROOT

STEPS = 400


def digest() -> str:
    """Of who is in every step of a crowd in which many contend: a bit of a level changes it."""
    clients = [Client(f"p{i}", 1, reply_tokens=200) for i in range(20)]
    crowd = Crowd(clients, Limits(slots_max=8, queue_s_max=1e9))
    plans = hashlib.sha256()
    for _ in range(STEPS):
        plan = crowd.step()
        plans.update(repr((plan.decodes, plan.prefills, plan.releases)).encode())
    return plans.hexdigest()


def test_plans_do_not_depend_on_how_names_are_hashed() -> None:
    """Or a recording would not replay."""
    found = {
        subprocess.run(
            [sys.executable, "-c", f"from {__name__} import digest; print(digest())"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "3")
    }
    assert len(found) == 1, found
