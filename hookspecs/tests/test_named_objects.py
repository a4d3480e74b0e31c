"""Which objects that a provider keeps a request names."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from litellm.proxy.openai_files_endpoints.common_utils import encode_file_id_with_model, get_original_file_id
from litellm.responses.utils import ResponsesAPIRequestUtils
from litellm.types.videos.utils import (
    decode_character_id_with_provider,
    decode_video_id_with_provider,
    encode_character_id_with_provider,
    encode_video_id_with_provider,
)

from pointsman.litellm.named_objects import LONGEST_ID, in_answer, in_body, in_path, of_answers, plain, possible
from pointsman.litellm.raw_answers import Listener
from pointsman.types import Endpoint

BODIES: list[tuple[dict[str, Any], set[str]]] = [
    ({"input_file_id": "file-1"}, {"file-1"}),
    ({"training_file": "file-1", "validation_file": "file-2"}, {"file-1", "file-2"}),
    ({"file_ids": ["file-1", "file-2"]}, {"file-1", "file-2"}),
    ({"file_ids[]": "file-1"}, {"file-1"}),
    ({"previous_response_id": "resp_1"}, {"resp_1"}),
    ({"container": "cntr_1"}, {"cntr_1"}),
    ({"container": {"id": "cntr_1"}}, {"cntr_1"}),
    ({"video": {"id": "video_1"}}, {"video_1"}),
    ({"previous_interaction_id": "int_1"}, {"int_1"}),
    ({"container": {"skills": [{"type": "custom", "skill_id": "skill_1"}]}}, {"custom", "skill_1"}),
    ({"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]}, {"vs_1"}),
    ({"tool_resources": {"file_search": {"vector_stores": [{"file_ids": ["file-1"]}]}}}, {"file-1"}),
    ({"contents": [{"parts": [{"fileData": {"fileUri": "https://a/files/1"}}]}]}, {"https://a/files/1"}),
    ({"messages": [{"content": [{"image_file": {"file_id": "file-1"}}]}]}, {"file-1"}),
    ({"model_file_id_mapping": {"a": {"b": "file-1"}}}, {"file-1"}),
    # What is read most often names nothing.
    ({"model": "m", "messages": [{"role": "user", "content": "file-1"}], "user": "u", "stream": True}, set()),
    ({"input": [{"type": "function_call_output", "call_id": "call_1", "output": "file-1"}]}, set()),
    ({"metadata": {"file_id": "file-1"}}, set()),
    ({"messages": [{"content": [{"type": "input_image", "image_url": "data:image/png;base64,AA"}]}]}, set()),
    # A file's content is not its id; too long an id is one all the same.
    ({"file": {"file_data": "x" * (LONGEST_ID + 1)}}, set()),
    ({"file_id": "x" * (LONGEST_ID + 1)}, {"x" * (LONGEST_ID + 1)}),
]


@pytest.mark.parametrize(("body", "ids"), BODIES)
def test_ids_are_found_by_their_fields(body: dict[str, Any], ids: set[str]) -> None:
    assert set(in_body(body)) == ids


def test_depth_is_no_limit() -> None:
    body: dict[str, Any] = {"file_id": "file-1"}
    for _ in range(10_000):
        body = {"a": [body]}
    assert set(in_body(body)) == {"file-1"}


@pytest.mark.parametrize(
    ("path", "id_"),
    [
        ("/v1/files/file-1", "file-1"),
        ("/files/file-1/content", "file-1"),
        ("/openai/v1/batches/batch_1:cancel", "batch_1"),
        ("/v1/files/gs://bucket/file/content", "gs://bucket/file"),
        ("/v1/videos/characters/char_1", "char_1"),
        ("/v1/containers/cntr_1/files/cfile_1/content", "cfile_1"),
        ("/v1/vector_stores/vs_1/file_batches/vsfb_1/cancel", "vsfb_1"),
        ("/v1beta/interactions/int_1/cancel", "int_1"),
        ("/v1/skills/skill_1/versions", "skill_1"),
    ],
)
def test_ids_are_found_in_paths(path: str, id_: str) -> None:
    assert id_ in set(in_path(path))


def coded(text: str, prefix: str = "") -> str:
    return prefix + base64.b64encode(text.encode()).decode()


WRAPPED = [
    ("file-1", "file-1"),
    (encode_file_id_with_model("file-1", "chat"), "file-1"),
    (encode_file_id_with_model("batch_1", "chat", id_type="batch"), "batch_1"),
    (encode_video_id_with_provider("video_1", "openai", "chat-1"), "video_1"),
    (encode_character_id_with_provider("char_1", "openai", "chat-1"), "char_1"),
    (ResponsesAPIRequestUtils.build_container_id("openai", "chat-1", "cntr_1"), "cntr_1"),
    (ResponsesAPIRequestUtils._build_responses_api_response_id("openai", "chat-1", "resp_1"), "resp_1"),
    (coded("litellm_proxy:a/b;unified_id,1;target_model_names,chat;llm_output_file_id,file-1;x,y"), "file-1"),
    (coded("litellm_proxy;model_id:chat-1;llm_batch_id:batch_1"), "batch_1"),
    ("https://generativelanguage.googleapis.com/v1beta/files/abc", "abc"),
    ("gs%3A%2F%2Fbucket%2Fa", "gs://bucket/a"),
]


@pytest.mark.parametrize(("wrapped", "id_"), WRAPPED)
def test_the_providers_id_is_found_in_litellms(wrapped: str, id_: str) -> None:
    assert plain(wrapped) == id_
    assert {wrapped, id_} <= possible(wrapped)


#: Ids that a client makes up, and what LiteLLM takes them for.
MADE_UP = [
    (coded("litellm:file-1;model,a;model,b", "file-"), get_original_file_id),
    (coded("a;b;video_id:video_1", "video_"), lambda id_: decode_video_id_with_provider(id_)["video_id"]),
    (coded("a;b;video_id:vivideo_id:deo_1", "video_"), lambda id_: decode_video_id_with_provider(id_)["video_id"]),
    (coded("a;b;video_id:video_1", "video_video_"), lambda id_: decode_video_id_with_provider(id_)["video_id"]),
    (
        coded("a;b;character_id:char_1", "character_"),
        lambda id_: decode_character_id_with_provider(id_)["character_id"],
    ),
    (
        coded("litellm:custom_llm_provider:a;model_id:b;response_id:resp_1", "resp_"),
        lambda id_: ResponsesAPIRequestUtils.decode_responses_api_response_id(id_)["response_id"],
    ),
    (
        coded("litellm:custom_llm_provider:a;model_id:b;response_id:reresponse_id:sp_1", "resp_resp_"),
        lambda id_: ResponsesAPIRequestUtils.decode_responses_api_response_id(id_)["response_id"],
    ),
    (
        coded("litellm:custom_llm_provider:a;model_id:b;container_id:cntr_1", "cntr_"),
        ResponsesAPIRequestUtils.decode_container_id_to_original,
    ),
]


@pytest.mark.parametrize(("made_up", "takes"), MADE_UP)
def test_what_litellm_takes_an_id_for_is_looked_up(made_up: str, takes: Any) -> None:
    assert takes(made_up) in possible(made_up)


ITEM: dict[str, Any] = {"type": "item_reference", "id": "msg_1"}
OF_ANSWERS: list[tuple[Endpoint, dict[str, Any], set[str]]] = [
    (Endpoint.RESPONSES, {"input": [{"role": "user", "content": "hi"}, ITEM]}, {"msg_1"}),
    (Endpoint.RESPONSES, {"input": [{"id": "msg_1"}, {"id": "rs_1", "type": None}]}, {"msg_1", "rs_1"}),
    (Endpoint.RESPONSES, {"response": {"input": [ITEM]}}, {"msg_1"}),
    (Endpoint.RESPONSES, {"extra_body": {"input": [ITEM], "conversation": "conv_1"}}, {"msg_1", "conv_1"}),
    (Endpoint.RESPONSES, {"conversation": "conv_1"}, {"conv_1"}),
    (Endpoint.RESPONSES, {"conversation": {"id": "conv_1"}}, {"conv_1"}),
    (Endpoint.RESPONSES, {"tools": [{"type": "code_interpreter", "container": "cntr_1"}]}, {"cntr_1"}),
    (Endpoint.PASS_THROUGH, {"previous_response_id": "resp_1"}, {"resp_1"}),
    (Endpoint.MESSAGES, {"container": "container_1"}, {"container_1"}),
    (Endpoint.MESSAGES, {"container": {"id": "container_1", "skills": []}}, {"container_1"}),
    (Endpoint.INTERACTIONS, {"previous_interaction_id": "int_1"}, {"int_1"}),
    (Endpoint.GENERATE_CONTENT, {"cachedContent": "cachedContents/1"}, {"cachedContents/1"}),
    (Endpoint.GENERATE_CONTENT, {"config": {"cached_content": "cachedContents/1"}}, {"cachedContents/1"}),
    (Endpoint.CHAT, {"cached_content": "cachedContents/1"}, {"cachedContents/1"}),
    (Endpoint.CHAT, {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}, {"audio_1"}),
    # What a client sends whole, what is new, and names of its own.
    (Endpoint.RESPONSES, {"input": [{"type": "message", "id": "msg_1", "role": "assistant", "content": []}]}, set()),
    (Endpoint.RESPONSES, {"input": "item_reference", "previous_response_id": "resp_1"}, set()),
    (Endpoint.RESPONSES, {"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}, set()),
    (Endpoint.RESPONSES, {"tools": [{"type": "function", "parameters": {"properties": {"container": {}}}}]}, set()),
    (Endpoint.MESSAGES, {"messages": [{"content": [{"type": "tool_use", "input": {"container": "web"}}]}]}, set()),
    (Endpoint.MESSAGES, {"container": {"skills": [{"type": "custom", "skill_id": "skill_1"}]}}, set()),
    (Endpoint.CHAT, {"conversation": "mine", "audio": {"voice": "alloy"}}, set()),
    (Endpoint.EMBEDDINGS, {"input": [[1, 2], "text"]}, set()),
    (Endpoint.REALTIME, {"response": {"conversation": "none", "input": [ITEM]}}, set()),
]


@pytest.mark.parametrize(("endpoint", "body", "ids"), OF_ANSWERS)
def test_what_only_answers_make_is_found(endpoint: Endpoint, body: dict[str, Any], ids: set[str]) -> None:
    assert set(of_answers(endpoint, body)) == ids


WROTE: dict[str, Any] = {
    "type": "bash_code_execution_tool_result",
    "tool_use_id": "srvtoolu_1",
    "content": {
        "type": "bash_code_execution_result",
        "stdout": "",
        "content": [{"type": "bash_code_execution_output", "file_id": "file_1"}, {"file_id": "file_2"}, {"file_id": 3}],
    },
}
ANSWERS: list[tuple[dict[str, Any], set[str]]] = [
    ({"id": "resp_1", "object": "response", "output": [{"id": "ci_1", "container_id": "cntr_1"}]}, {"cntr_1"}),
    ({"type": "response.completed", "response": {"output": [{"container_id": "cntr_1"}]}}, {"cntr_1"}),
    ({"type": "message", "container": {"id": "container_1", "expires_at": "soon"}}, {"container_1"}),
    ({"type": "message_delta", "delta": {"container": {"id": "container_1"}}}, {"container_1"}),
    ({"type": "message_start", "message": {"container": {"id": "container_1"}}}, {"container_1"}),
    ({"id": "int_1", "object": "interaction"}, {"int_1"}),
    ({"event_type": "interaction.complete", "interaction": {"id": "int_1", "object": "interaction"}}, {"int_1"}),
    ({"choices": [{"message": {"audio": {"id": "audio_1"}}}]}, {"audio_1"}),
    ({"type": "message", "content": [{"type": "text", "text": "hi"}, WROTE]}, {"file_1", "file_2"}),
    ({"type": "content_block_start", "index": 1, "content_block": WROTE}, {"file_1", "file_2"}),
    ({"content": [{**WROTE, "type": "code_execution_tool_result"}]}, {"file_1", "file_2"}),
    # What others than the provider say, and errors.
    ({"content": [{**WROTE, "type": "mcp_tool_result"}, {**WROTE, "content": {"type": "error"}}, 1]}, set()),
    ({"content": [{**WROTE, "content": [{"file_id": "file_1"}]}], "content_block": "text"}, set()),
    ({"id": "msg_1", "container": None, "output": "text", "choices": [{"message": None}, 1], "delta": 1}, set()),
]


@pytest.mark.parametrize(("message", "ids"), ANSWERS)
def test_what_an_answer_has_made_is_found(message: dict[str, Any], ids: set[str]) -> None:
    assert set(in_answer(message)) == ids


@pytest.mark.parametrize("piece", [1, 7, 10_000])
def test_what_a_stream_has_made_is_found_in_lines_that_say_nothing_of_usage(piece: int) -> None:
    events = [
        {"type": "message_start", "message": {"id": "msg_1", "content": []}},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": 'a "file_id"'}},
        {"type": "content_block_start", "index": 1, "content_block": WROTE},
        {"type": "message_stop"},
    ]
    stream = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    listener = Listener("text/event-stream")
    for start in range(0, len(stream), piece):
        listener.hear(stream[start : start + piece])
    assert listener.objects() == ["file_1", "file_2"]
