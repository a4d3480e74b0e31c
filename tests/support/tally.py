"""A LiteLLM callback of somebody else: writes down what LiteLLM itself logs as success, one JSON object a line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from litellm.integrations.custom_logger import CustomLogger


class Tally(CustomLogger):  # type: ignore[misc]  # LiteLLM is not typed for us
    """Counts."""

    async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        logged = kwargs.get("standard_logging_object") or {}
        row = {
            "deployment": logged.get("model_id"),
            "cost": logged.get("response_cost"),
            "tokens": logged.get("total_tokens"),
            "call": kwargs.get("litellm_call_id"),
            "status": logged.get("status"),
        }
        with Path(os.environ["TALLY_FILE"]).open("a", encoding="utf-8") as file:  # noqa: ASYNC230  # a line of a test
            file.write(json.dumps(row, default=str) + "\n")


tally = Tally()
