"""The process that renders one chat template, as transformers renders it. Run by path (`chat_template`); needs jinja2 and nothing of ours.

A template is code from whoever made the checkpoint. jinja2's sandbox keeps it from Python, nothing in it bounds time or memory: so it runs
here, with its memory limited, and whoever asks ends this process when time is up. Lines of JSON come in (the template, then conversations)
and go out. The environment is that of transformers 5 (`utils/chat_template_utils.py`): its filters, its globals, its tags.
"""

from __future__ import annotations

import json
import resource
import sys
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_BYTES = 1 << 30
"""Of this process's address space."""
MOST_CHARACTERS = 2 << 20
"""Of a rendered conversation: about what half a million tokens have. Tokenizing takes some 200 bytes and 2 us for each."""


class Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the assistant said, for training; it changes nothing of the text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Any) -> Any:
        return caller()


def environment() -> ImmutableSandboxedEnvironment:
    def raise_exception(message: object) -> None:
        raise jinja2.TemplateError(str(message))

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def answer(template: jinja2.Template, request: dict[str, Any]) -> dict[str, Any]:
    """`{"text": ...}`, or `{"error": ...}`."""
    try:
        pieces, count = [], 0
        for piece in template.generate(**request):
            count += len(piece)
            if count > MOST_CHARACTERS:
                return {"error": f"it gives more than {MOST_CHARACTERS} characters"}
            pieces.append(piece)
        return {"text": "".join(pieces)}
    except MemoryError:
        return {"error": f"it takes more than {MOST_BYTES >> 30} GiB"}
    except RecursionError:
        return {"error": "it calls itself without end"}
    except Exception as error:
        return {"error": str(error) or type(error).__name__}


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    source = json.loads(sys.stdin.readline())
    try:
        template = environment().from_string(source)
        said: dict[str, Any] = {}
    except Exception as error:
        said = {"broken": str(error) or type(error).__name__}
    print(json.dumps(said), flush=True)
    if said:
        return
    for line in sys.stdin:
        print(json.dumps(answer(template, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
