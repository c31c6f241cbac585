# SPDX-License-Identifier: MIT
"""What a server says when it starts: what was chosen and why, and lines that work when pasted."""

from __future__ import annotations

import msgspec

from tokenspeed import __version__
from tokenspeed.base.config import ServerConfig
from tokenspeed.engine import wire


def banner(
    ready: wire.Ready, model_name: str, config: ServerConfig, port: int, start_s: float, *, chat: bool
) -> str:
    """The text of the banner; `chat` says whether the model has a chat template."""
    host = "127.0.0.1" if config.host in ("0.0.0.0", "::", "localhost") else config.host
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    key = "unused" if config.api_key is None else "YOUR_KEY"
    header = "" if config.api_key is None else " -H 'Authorization: Bearer YOUR_KEY'"
    message = {"role": "user", "content": "Write a function that reverses a list."}
    asked = {"messages": [message]} if chat else {"prompt": "def reverse(items):"}
    request = msgspec.json.encode({"model": model_name, **asked, "max_tokens": 64}).decode()
    route = "/v1/chat/completions" if chat else "/v1/completions"
    width = max((len(what) for what, _, _ in ready.choices), default=0)
    chosen = [f"  {what:<{width}}  {value}  ({why})" for what, value, why in ready.choices]
    return "\n".join(
        [
            f"TokenSpeed {__version__} serves {model_name} at {url} (ready after {start_s:.1f} s)",
            *chosen,
            "",
            "Try it:",
            f"  curl {url}{route}{header} -H 'Content-Type: application/json' \\",
            f"    -d '{request}'",
            "",
            "Clients of the OpenAI API:",
            f"  export OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY={key}",
            "",
            f"Watch it: {url}/dashboard",
        ]
    )
