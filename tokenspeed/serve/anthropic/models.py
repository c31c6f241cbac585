# SPDX-License-Identifier: MIT
"""GET /v1/models and /v1/models/{id} for clients that send `anthropic-version`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tokenspeed.serve.service import Service


def card(service: Service) -> dict[str, Any]:
    """The served model."""
    tokens_max = service.context_tokens_max
    return {
        "type": "model",
        "id": service.model_name,
        "display_name": service.model_name,
        "created_at": datetime.fromtimestamp(service.started_s, UTC).isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "max_input_tokens": tokens_max - 1,
        "max_tokens": tokens_max - 1,
        "max_model_len": tokens_max,
    }


def listing(service: Service) -> dict[str, Any]:
    """All there are: one."""
    name = service.model_name
    return {"data": [card(service)], "has_more": False, "first_id": name, "last_id": name}
