"""A conversation is rendered with the template that transformers takes, and each was tried out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from sapwood.model.checkpoint.files import ModelDirectory, ModelRefused
from sapwood.model.prompt.errors import PromptRefused
from sapwood.model.prompt.tokenizer_file import load_tokenizer
from tests.chat import turns
from tests.model.reference import copied, edit

FILE = "chat_template.jinja"
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}]


def template(name: str) -> str:
    """One that says which it is."""
    said = "{{ messages[0].content }}{{ tools[0].function.name if tools }}"
    return f"{{{{ bos_token }}}}<|turn>{name} {said}<turn|>"


def listed(*names: str) -> list[dict[str, str]]:
    return [{"name": name, "template": template(name)} for name in names]


def model(place: Path, settings: Any, files: tuple[str, ...]) -> ModelDirectory:
    """With these templates and no others; files: names in additional_chat_templates, or FILE."""
    directory = copied("e2b-tiny", place)
    (directory.path / FILE).unlink()
    edit(directory, "tokenizer_config.json", {"chat_template": settings})
    for name in files:
        path = directory.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(template(name))
    return directory


EXTRA = "additional_chat_templates"
SOURCES = [
    ("own", ()),
    (listed("default", "tool_use"), ()),
    (listed("tool_use", "default", "rag"), ()),
    (listed("tool_use"), ()),
    (listed("default"), ()),
    ({"default": template("default"), "tool_use": template("tool_use")}, ()),
    (listed("default", "tool_use"), (FILE,)),
    (None, (FILE, f"{EXTRA}/tool_use.jinja")),
    (listed("default", "tool_use"), (FILE, f"{EXTRA}/tool_use.jinja", f"{EXTRA}/rag.jinja")),
    ("own", (f"{EXTRA}/tool_use.jinja",)),
    (None, (f"{EXTRA}/default.jinja", FILE)),
    (None, ()),
]


@pytest.mark.parametrize(("settings", "files"), SOURCES)
@pytest.mark.parametrize("tools", [[], TOOLS])
def test_the_template_is_the_one_that_transformers_takes(
    settings: Any, files: tuple[str, ...], tools: list[Any], tmp_path: Path
) -> None:
    if settings == "own":
        settings = template("own")
    directory = model(tmp_path, settings, files)
    ours = load_tokenizer(directory, 1024)
    theirs = AutoTokenizer.from_pretrained(str(directory.path))
    messages = turns(("user", "hi"))
    try:
        expected = theirs.apply_chat_template(
            messages, tools=tools or None, add_generation_prompt=True, return_dict=False
        )
    except ValueError:  # no template, or several and none of them the default
        assert ours.features(bool(tools)) is None
        with pytest.raises(PromptRefused, match="no chat template"):
            ours.encode_messages(messages, tools)
        return
    assert ours.encode_messages(messages, tools) == expected
    assert ours.features(bool(tools)) == frozenset({"tools"})


def test_what_each_template_uses_is_its_own(tmp_path: Path) -> None:
    directory = model(tmp_path, None, (FILE,))
    (directory.path / EXTRA).mkdir()
    more = template("x") + "{{ enable_thinking }}{{ messages[0].tool_calls }}"
    (directory.path / EXTRA / "tool_use.jinja").write_text(more)
    tokenizer = load_tokenizer(directory, 1024)
    assert tokenizer.features(False) == frozenset({"tools"})
    assert tokenizer.features(True) == frozenset({"tools", "enable_thinking", "tool_calls"})


@pytest.mark.parametrize("name", [FILE, f"{EXTRA}/tool_use.jinja"])
@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{{ strptime('x') }}", "cannot render one plain user turn: \"'strptime' is undefined\""),
        ("{{ raise_exception('say it twice') }}", "cannot .* user turn: 'say it twice'"),
        ("{{ messages[7].content.x }}", "cannot .* user turn: 'list object has no element 7'"),
        ("{{ messages[0].content[0].text }}x", "loses the content of one plain user turn"),
        ("{{ bos_token }}", "loses the content"),
        ("{{ bos_token }}Hello, hello.", "loses the content"),
        ("{{ messages[0].content }}{{ '<tu' ~ 'rn|>' }}", "builds control tokens from pieces"),
        ("{{ messages[0].content | nosuch }}", "is not a template: No filter named 'nosuch'"),
        ("{{ 'x' * 99999999 }}", "cannot render .*: 'a template makes too much'"),
    ],
)
def test_a_template_that_fails_on_a_plain_turn_is_refused_at_the_start(
    source: str, problem: str, name: str, tmp_path: Path
) -> None:
    """It would refuse every conversation as if that were the client's fault."""
    directory = model(tmp_path, None, (FILE, f"{EXTRA}/tool_use.jinja"))
    load_tokenizer(directory, 1024)
    (directory.path / name).write_text(source)
    with pytest.raises(ModelRefused, match=rf"{name}: {problem}") as caught:
        load_tokenizer(directory, 1024)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content | upper }}",
        "{% for m in messages %}{{ m.content | trim | title }}{% endfor %}",
        "{% if tools %}{{ raise_exception('no tools') }}{% endif %}{{ messages | tojson }}",
        "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}"
        "{{ messages[0].content }}",
    ],
)
def test_a_template_may_say_it_in_its_own_way(source: str, tmp_path: Path) -> None:
    directory = model(tmp_path, None, (FILE,))
    (directory.path / FILE).write_text(source)
    assert load_tokenizer(directory, 1024).encode_messages(turns(("user", "hi")))


def test_the_folder_of_templates_leads_nowhere_else(tmp_path: Path) -> None:
    directory = model(tmp_path, None, (FILE,))
    (tmp_path / "else").mkdir()
    (directory.path / EXTRA).symlink_to(tmp_path / "else")
    with pytest.raises(ModelRefused, match=rf"{EXTRA}: is a link, expected a folder"):
        load_tokenizer(directory, 1024)
    (directory.path / EXTRA).unlink()
    (directory.path / EXTRA).mkdir()
    (tmp_path / "else" / "x").write_text(template("x"))
    (directory.path / EXTRA / "tool_use.jinja").symlink_to(tmp_path / "else" / "x")
    with pytest.raises(ModelRefused, match=r"tool_use\.jinja: leads out of its directory"):
        load_tokenizer(directory, 1024)


def test_a_table_whose_template_is_no_text_is_refused(tmp_path: Path) -> None:
    for told in ({"tool_use": 1}, [{"name": "tool_use"}], [7, {"name": "default", "template": []}]):
        directory = model(tmp_path / json.dumps(told)[:9], told, ())
        with pytest.raises(ModelRefused, match=r"chat_template is .*, expected a template or a"):
            load_tokenizer(directory, 1024)


def test_a_template_that_writes_media_tokens_into_mere_text_is_refused(tmp_path: Path) -> None:
    """Every conversation would be refused for it; the end of a turn stands for such a token."""
    directory = copied("e2b-tiny", tmp_path)
    load_tokenizer(directory, 1024)
    with pytest.raises(ModelRefused, match=r"writes '<turn\|>' into a turn of mere text"):
        load_tokenizer(directory, 1024, media_ids=frozenset({106}))
