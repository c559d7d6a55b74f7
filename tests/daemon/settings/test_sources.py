"""Flags, environment and file say the same things by the same names."""

from __future__ import annotations

from pathlib import Path

import pytest

from sapwood.daemon.errors import UsageError
from sapwood.daemon.settings.config import effective_settings, load_config
from sapwood.daemon.settings.sources import FILE_TABLES, variable


def test_a_flag_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('draft_depth = 1\nmemory = "1G"\ndtype = "float32"\n')
    environ = {"SAPWOOD_DRAFT_DEPTH": "2", "SAPWOOD_MEMORY": "2G", "SAPWOOD_CONFIG": str(file)}
    config = load_config({"draft_depth": "3"}, environ)
    assert (config.draft_depth, config.memory_bytes, config.dtype) == (3, 2 << 30, "float32")
    found = {name: where for name, _, where in effective_settings({"draft_depth": "3"}, environ)}
    assert found["draft_depth"] == "--draft-depth"
    assert found["memory"] == "SAPWOOD_MEMORY"
    assert found["dtype"] == f"{file}: dtype"
    assert found["metrics"] == ""


def test_every_setting_but_a_table_can_be_set_by_the_environment() -> None:
    """What is one by a flag is the same there."""
    environ = {
        "SAPWOOD_LISTEN": "127.0.0.1:1 unix:/s,principal=bob",
        "SAPWOOD_REFLECTION": "false",
        "SAPWOOD_WIRE_MEMORY": "true",
        "SAPWOOD_TOKENS": "/t",
    }
    flags = {
        "listen": ["127.0.0.1:1", "unix:/s,principal=bob"],
        "reflection": False,
        "wire_memory": True,
        "tokens": "/t",
    }
    assert load_config({}, environ) == load_config(flags)
    for table in FILE_TABLES:
        assert load_config({}, {variable(table): "x"}) == load_config({})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("draft_dept = 1", "unknown setting 'draft_dept' (did you mean draft_depth?)"),
        ('memory = "lots"', "memory: 'lots' is not a size"),
        (
            "[limits]\nslots_mx = 1",
            "limits: there is no limit 'slots_mx' (did you mean slots_max?)",
        ),
        ("[principals.a]\nwieght = 1", "unknown setting 'wieght' (did you mean weight?)"),
        ("model = ", "is not TOML"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_name(
    text: str, says: str, tmp_path: Path
) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_config({"config": str(file)})
    assert str(caught.value).startswith(str(file)) and says in str(caught.value)


def test_what_is_wrong_in_the_environment_is_said_with_its_name() -> None:
    with pytest.raises(UsageError, match="SAPWOOD_REFLECTION: 'maybe' is not true or false"):
        load_config({}, {"SAPWOOD_REFLECTION": "maybe"})
