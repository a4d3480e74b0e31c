"""A LiteLLM callback of somebody else: writes down what LiteLLM itself says each call cost, one JSON object a line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from litellm.integrations.custom_logger import CustomLogger


class SpendLog(CustomLogger):  # type: ignore[misc]  # LiteLLM is not typed for us
    """Writes to the file that the variable SPEND_LOG names."""

    async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        logged = kwargs.get("standard_logging_object") or {}
        row = {"call": kwargs.get("litellm_call_id"), "cost_usd": logged.get("response_cost")}
        with Path(os.environ["SPEND_LOG"]).open("a", encoding="utf-8") as file:  # noqa: ASYNC230  # a line of a test
            file.write(json.dumps(row) + "\n")


spend_log = SpendLog()
