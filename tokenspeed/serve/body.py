# SPDX-License-Identifier: MIT
"""Request bodies: bytes to a checked struct, or a 4xx that says what would work.

In: an HTTP request. Out: the struct a handler asked for, and the plain object it came from. Priced before
work: the size is bounded while reading, nesting by the decoder. A field nobody knows is ignored with one log
line per name (rule R4); fields ignored on purpose are listed by the struct's `ignored` and say nothing. A
field that is null is absent.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from tokenspeed.base.errors import RequestError
from tokenspeed.base.log import get_logger

_log = get_logger("serve")
BODY_S: Final = 60.0  # a body that takes longer holds memory for nothing
_NAMES_LOGGED_MAX: Final = 1000  # then silence: names come from outside
_NAME_CHARACTERS_MAX: Final = 64
_AT: Final = re.compile(r" - at (?:`key` in )?`\$\.?(?P<path>[^`]*)`$")
_MISSING: Final = re.compile(r"missing required field `(?P<name>\w+)`$")
_DECODER: Final = msgspec.json.Decoder(dict[str, Any])
_ESCAPE: Final = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<lone>\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\."
)
_B = TypeVar("_B", bound=msgspec.Struct)


class BodyReader:
    """Reads the bodies of one server; remembers which unknown names it has logged."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._logged: set[str] = set()

    async def read(self, request: Request) -> bytes:
        """The whole body; `RequestError` 413 or 415."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            # Also a guard: a page in a browser can post any other type to a server on loopback unasked.
            raise RequestError(
                f"the body is sent as {kind[:_NAME_CHARACTERS_MAX] or 'no type'}; send JSON with "
                "'Content-Type: application/json'",
                code="unsupported_media_type",
                status=415,
            )
        if request.headers.get("content-encoding", "identity") != "identity":
            raise RequestError(
                "compressed bodies are not read; send it plain", code="unsupported_encoding", status=415
            )
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self._bytes_max:
            raise self._too_large()
        pieces: list[bytes] = []
        length = 0
        try:
            async with asyncio.timeout(BODY_S):
                async for piece in request.stream():
                    length += len(piece)
                    if length > self._bytes_max:
                        raise self._too_large()
                    pieces.append(piece)
        except TimeoutError as error:
            raise RequestError(
                f"the body did not arrive within {BODY_S:.0f} s", code="body_timeout", status=408
            ) from error
        except ClientDisconnect as error:
            raise RequestError("the client left", code="client_closed", status=499) from error
        return b"".join(pieces)

    def parse(self, data: bytes, kind: type[_B]) -> tuple[_B, dict[str, Any]]:
        """The struct, and the object it came from."""
        raw = {name: value for name, value in decode_object(data).items() if value is not None}
        try:
            body = msgspec.convert(raw, kind, str_keys=True)
        except msgspec.ValidationError as error:
            raise _wrong_type(error) from error
        except RecursionError as error:
            raise _too_deep() from error
        self.note_unknown(raw, kind)
        return body, raw

    def note_unknown(self, raw: dict[str, Any], kind: type[msgspec.Struct], prefix: str = "") -> None:
        """Log each name of `raw` that `kind` neither has nor ignores, once per server."""
        known = {*kind.__struct_encode_fields__, *getattr(kind, "ignored", ())}
        for name in raw.keys() - known:
            shown = prefix + name[:_NAME_CHARACTERS_MAX]
            if shown not in self._logged and len(self._logged) < _NAMES_LOGGED_MAX:
                self._logged.add(shown)
                _log.warning("ignored the unknown field %r of a request", shown)

    def _too_large(self) -> RequestError:
        return RequestError(
            f"the body is larger than {self._bytes_max} bytes (--body-bytes-max)",
            code="body_too_large",
            status=413,
        )


def decode_object(data: bytes) -> dict[str, Any]:
    """A JSON object; `RequestError` for anything else.

    Clients that cut text between the halves of a surrogate pair send a lone half, which is no Unicode; it is
    read as U+FFFD, as a history once written must stay readable.
    """
    try:
        return _DECODER.decode(data)
    except msgspec.MsgspecError:
        mended = _ESCAPE.sub(_mend, data)
    except (UnicodeDecodeError, RecursionError):
        mended = data
    try:
        return _DECODER.decode(mended)
    except msgspec.ValidationError as error:
        raise RequestError(
            f"the body must be a JSON object: {_plain(str(error))}", code="invalid_json"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"the body is not valid JSON: {error}", code="invalid_json") from error
    except RecursionError as error:
        raise _too_deep() from error


def _mend(escape: re.Match[bytes]) -> bytes:
    """A JSON escape, or U+FFFD's where it is half a surrogate pair."""
    return rb"\ufffd" if escape["lone"] else escape[0]


def _too_deep() -> RequestError:
    return RequestError("the body is nested too deeply", code="invalid_json")


def _wrong_type(error: msgspec.ValidationError) -> RequestError:
    text = str(error)
    found = _AT.search(text)
    path = found["path"] if found else ""
    if not path and (missing := _MISSING.search(text)):
        return RequestError(f"{missing['name']} is missing", code="invalid_type", param=missing["name"])
    return RequestError(
        f"{path}: {_plain(text)}" if path else _plain(text), code="invalid_type", param=path or None
    )


def _plain(text: str) -> str:
    """The decoder's message without its notation."""
    text = _AT.sub("", text).replace("`", "")
    return text[:1].lower() + text[1:]
