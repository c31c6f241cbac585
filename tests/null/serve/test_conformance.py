# SPDX-License-Identifier: MIT
"""Nothing is silently inert: every field of every body has an effect, is refused with its name, or is listed as
ignored; and the OpenAPI document says what the handlers take."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from openapi_cases import BODIES, VALUES
from scripted import Script, Serving, serving

from tokenspeed.serve import app
from tokenspeed.serve.generation import Choice
from tokenspeed.serve.service import Service
from tokenspeed.serve.turns import Turns
from tokenspeed.text.chat_template import ChatTemplate

REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "openapi.json"
DOCUMENT = msgspec.json.decode(app.openapi())
FIELDS = [(path, name) for path, (body, _) in BODIES.items() for name in body.__struct_encode_fields__]
IGNORED = [
    (path, name) for path, (body, _) in BODIES.items() for name in sorted(getattr(body, "ignored", ()))
]
DRAWN = re.compile(
    r'"(?:id|created|created_at|signature|call_id|item_id|request_id)":(?:"[^"]*"|\d+),?|[a-z]+_[0-9a-f]{24,32}'
)


TEMPLATE = (  # listens to every variable that a field may set
    "{{ tools | tojson if tools }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{{ reasoning_effort or '' }}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


@pytest.fixture(scope="module")
def own() -> Iterator[Serving]:
    with serving(allow_forced_output=True) as server:
        service = server.service
        service.text = replace(service.text, template=ChatTemplate({"default": TEMPLATE}, {}))
        service.turns = Turns(service.text, server.engine.metrics, service.run_text)
        yield server


@pytest.fixture
def observe(own, monkeypatch):
    """Posts a body and tells all that came of it: status, answer, and what the engine was asked."""
    handed: list[Any] = []
    generate = Service.generate

    def recorded(self: Service, choices: list[Choice], origin: Any, **more: Any) -> Any:
        handed.append((choices, replace(origin, received_us=0)))
        return generate(self, choices, origin, **more)

    monkeypatch.setattr(Service, "generate", recorded)
    own.engine.script = Script("<think>\nwhy\n</think>\n\nYes two<|im_end|> words.", cached_tokens=2)

    def post(path: str, body: dict[str, Any]) -> tuple[int, str, str]:
        handed.clear()
        own.service.turns.ledger.__init__()
        own.service.responses.__init__()
        answer = httpx.post(own.url + path, json=body, trust_env=False, timeout=20)
        kept = len(own.service.responses._kept)  # pyright: ignore[reportPrivateUsage]
        shown = [
            ([*map(int, c.prompt)], c.sampling, c.options.stops, c.options.one_call, c.options.include_stop,
             c.options.skip_special_tokens, c.constraint is not None, origin.salt, replace(
                 origin.session, id=None if (origin.session.id or "~").startswith("~") else origin.session.id))
            for choices, origin in handed for c in choices
        ]  # fmt: skip
        return answer.status_code, DRAWN.sub("", answer.text), repr((shown, kept))

    return post


@pytest.mark.parametrize(("path", "name"), FIELDS)
def test_every_field_is_honoured_or_refused_by_name(observe, path, name):
    least = BODIES[path][1]
    values = VALUES[path].get(name, VALUES["*"].get(name))
    assert values is not None, f"say in openapi_cases what {name} of {path} does"
    for more in values:
        beside = {key: value for key, value in more.items() if key != name}
        without, given = observe(path, least | beside), observe(path, least | more)
        if 400 <= given[0] < 500:
            assert re.search(rf"\b{name}\b", given[1]) or without[0] == 400, given[1]
        else:
            assert given[0] == 200, given[1]
            assert given != without, f"{name} of {path} changes nothing"


@pytest.mark.parametrize(("path", "name"), IGNORED)
def test_what_is_listed_as_ignored_changes_nothing(observe, path, name):
    least = BODIES[path][1]
    assert observe(path, least | {name: "x"}) == observe(path, least)


def test_the_document_is_the_one_in_the_reference():
    # python -c 'from tokenspeed.serve import app; print(app.openapi().decode(), end="")' > docs/reference/openapi.json
    assert app.openapi() == REFERENCE.read_bytes()


def test_the_document_names_every_route_and_no_other(http, server):
    routes = {
        (method.lower(), route.path.replace(":path}", "}"))
        for route in app.build(server.service).routes
        for method in route.methods - {"HEAD"}
    }
    assert routes == {(method, path) for path, item in DOCUMENT["paths"].items() for method in item}
    assert http.get("/openapi.json").json() == DOCUMENT


@pytest.mark.parametrize("path", BODIES)
def test_the_document_has_the_fields_that_handlers_decode(path):
    body = BODIES[path][0]
    reference = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"][
        "$ref"
    ]
    schema = DOCUMENT["components"]["schemas"][reference.rpartition("/")[2]]
    assert set(schema["properties"]) == set(body.__struct_encode_fields__)
    assert schema.get("x-ignored", []) == sorted(getattr(body, "ignored", ()))


def test_references_inside_the_document_lead_somewhere():
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', app.openapi().decode()))
    assert names <= set(DOCUMENT["components"]["schemas"])
