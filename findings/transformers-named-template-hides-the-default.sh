#!/usr/bin/env bash
# transformers: one file in additional_chat_templates/ makes a tokenizer forget the chat template of
# its tokenizer_config.json.
#
# Library: transformers 5.23.0, AutoTokenizer.from_pretrained (PreTrainedTokenizerBase._from_pretrained).
# Behaviour: templates that lie in files are collected by name, chat_template.jinja as "default". If
#   there is any, they stand in place of tokenizer_config.json's `chat_template`, not beside it. So a
#   directory whose default template is in tokenizer_config.json, and that gets a file
#   additional_chat_templates/tool_use.jinja, keeps only that: with tools it renders, without tools
#   apply_chat_template raises ValueError ("multiple chat templates with no default specified"),
#   though the default is still in tokenizer_config.json.
# Seen with 5.23.0: the two lines that are compared below, before and after the file is added.
# What helps: write the default to chat_template.jinja when a file is added.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    "transformers==5.23.0" "tokenizers>=0.22" "jinja2==3.1.6"

cat > "$work/look.py" <<'PY'
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

home = Path(sys.argv[1])
home.mkdir()
Tokenizer(models.WordLevel({"x": 0}, unk_token="x")).save(str(home / "tokenizer.json"))
settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "default"}
(home / "tokenizer_config.json").write_text(json.dumps(settings))


def rendered(tools):
    tokenizer = AutoTokenizer.from_pretrained(str(home))
    turns = [{"role": "user", "content": "x"}]
    try:
        return tokenizer.apply_chat_template(turns, tools=tools, tokenize=False)
    except ValueError:
        return "ValueError"


tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}
print("without the file:", rendered(None), rendered([tool]))
(home / "additional_chat_templates").mkdir()
(home / "additional_chat_templates" / "tool_use.jinja").write_text("tool_use")
print("with the file:", rendered(None), rendered([tool]))
PY

found=$("$work/venv/bin/python" "$work/look.py" "$work/model" 2>"$work/errors")
expected="without the file: default default
with the file: ValueError tool_use"

printf 'a conversation without tools, one with tools:\n%s\n' "$found"
if [ "$found" != "$expected" ]; then
    printf 'this has changed; expected was:\n%s\n' "$expected" >&2
    exit 1
fi
printf 'as described\n'
