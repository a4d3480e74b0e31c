"""What a request gives a model to read: every field of every API, and nothing that is not text."""

import base64
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.counting import AUDIO_TOKENS_A_S, IMAGE_TOKENS, PAGE_TOKENS, UNSEEN_PAGES, Prompt, read_prompt

WORDS = "some words of a prompt " * 40
PNG = base64.b64encode(b"\x89PNG" + bytes(90_000)).decode()
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "description": WORDS}}}


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


def words(text):
    return len(text.split())


TEXTS = {
    "chat message": {"messages": [{"role": "user", "content": WORDS}]},
    "chat part": {"messages": user({"type": "text", "text": WORDS})},
    "chat tool result": {"messages": [{"role": "tool", "tool_call_id": "c", "content": WORDS}]},
    "chat tool call": {
        "messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": WORDS}}]}]
    },
    "chat tool": {"messages": [], "tools": [{"type": "function", "function": {"name": "f", "description": WORDS}}]},
    "chat function": {"messages": [], "functions": [{"name": "f", "parameters": SCHEMA}]},
    "chat schema": {"messages": [], "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
    "chat prediction": {"messages": [], "prediction": {"type": "content", "content": WORDS}},
    "messages system": {"messages": [], "system": WORDS},
    "messages system parts": {"messages": [], "system": [{"type": "text", "text": WORDS}]},
    "messages tool": {"messages": [], "tools": [{"name": "f", "input_schema": SCHEMA}]},
    "messages tool use": {"messages": user({"type": "tool_use", "id": "t", "name": "f", "input": {"query": WORDS}})},
    "messages tool result": {"messages": user({"type": "tool_result", "tool_use_id": "t", "content": WORDS})},
    "messages tool result parts": {
        "messages": user({"type": "tool_result", "content": [{"type": "text", "text": WORDS}]})
    },
    "messages document": {
        "messages": user({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": WORDS}})
    },
    "messages thinking": {"messages": user({"type": "thinking", "thinking": WORDS, "signature": "c" * 900})},
    "responses instructions": {"input": "", "instructions": WORDS},
    "responses input": {"input": WORDS},
    "responses part": {"input": user({"type": "input_text", "text": WORDS})},
    "responses tool output": {"input": [{"type": "function_call_output", "call_id": "c", "output": WORDS}]},
    "responses format": {"input": "", "text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}}},
    "responses prompt variable": {"prompt": {"id": "pmpt", "variables": {"city": WORDS}}},
    "completions": {"prompt": WORDS},
    "completions, several": {"prompt": [WORDS[:460], WORDS[460:]]},
    "completions suffix": {"prompt": "", "suffix": WORDS},
    "embeddings": {"input": [WORDS]},
    "gemini": {"contents": [{"role": "user", "parts": [{"text": WORDS}]}]},
    "gemini system": {"contents": [], "systemInstruction": {"parts": [{"text": WORDS}]}},
    "gemini tool": {"contents": [], "tools": [{"functionDeclarations": [{"name": "f", "description": WORDS}]}]},
    "gemini tool result": {"contents": [{"parts": [{"functionResponse": {"name": "f", "response": {"text": WORDS}}}]}]},
    "gemini schema": {"contents": [], "generationConfig": {"responseSchema": SCHEMA}},
    "rerank documents": {"query": "", "documents": [WORDS]},
    "rerank objects": {"query": "", "documents": [{"text": WORDS}]},
    "a field of any name": {"whatever": {"there": [{"may": WORDS}]}},
    "a field's name": {"messages": [{WORDS: 1}]},
    "a name within a schema": {"tools": [{"parameters": {"properties": {WORDS: {"type": "string"}}}}]},
    "text that begins like a data URL": {"messages": user({"type": "text", "text": f"data:text/plain;base64,{WORDS}"})},
    "text where an image belongs": {"messages": user({"type": "image_url", "image_url": {"url": WORDS}})},
    "text where a type belongs": {"messages": user({"type": WORDS})},
    "an address that is none": {"messages": user({"type": "image_url", "image_url": {"url": "https://" + WORDS * 3}})},
}


@pytest.mark.parametrize("body", TEXTS.values(), ids=TEXTS.keys())
def test_all_text_counts_wherever_it_stands(body):
    """Framing and structure add little to it."""
    tokens = read_prompt({"model": "m", **body}).tokens(words)
    assert words(WORDS) <= tokens <= 3 * words(WORDS) + 40


@pytest.mark.parametrize(
    "body",
    [
        {"input": list(range(900))},
        {"input": [list(range(300)), list(range(600))]},
        {"prompt": list(range(900))},
        {"prompt": [list(range(450))] * 2},
    ],
)
def test_token_ids_are_a_token_each(body):
    assert read_prompt(body).tokens(words) == 900


IMAGES = {
    "chat": {"messages": user({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}})},
    "chat, address": {"messages": user({"type": "image_url", "image_url": {"url": "https://host/cat"}})},
    "messages": {
        "messages": user({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}})
    },
    "messages, within a tool result": {
        "messages": user(
            {"type": "tool_result", "content": [{"type": "image", "source": {"type": "base64", "data": PNG}}]}
        )
    },
    "responses": {"input": user({"type": "input_image", "image_url": f"data:image/png;base64,{PNG}"})},
    "responses, file": {"input": user({"type": "input_image", "file_id": "file-1"})},
    "gemini": {"contents": [{"parts": [{"inlineData": {"mimeType": "image/png", "data": PNG}}]}]},
    "gemini, snake case": {"contents": [{"parts": [{"inline_data": {"mime_type": "image/png", "data": PNG}}]}]},
    "gemini, file": {"contents": [{"parts": [{"fileData": {"mimeType": "image/png", "fileUri": "gs://bucket/cat"}}]}]},
    "edits": {"image": f"data:image/png;base64,{PNG}"},
    "edits, uploaded": {"image": b"\x89PNG" * 100},
}


@pytest.mark.parametrize("body", IMAGES.values(), ids=IMAGES.keys())
def test_an_image_is_an_image_and_not_text(body):
    prompt = read_prompt(body)
    assert (prompt.images, prompt.pages, prompt.audio_ms, prompt.text) == (1, 0, 0, "")
    assert prompt.media_tokens == IMAGE_TOKENS


CLIPS = {
    "chat": {"messages": user({"type": "input_audio", "input_audio": {"data": PNG, "format": "wav"}})},
    "gemini": {"contents": [{"parts": [{"inlineData": {"mimeType": "audio/wav", "data": PNG}}]}]},
    "data URL": {"messages": user({"type": "file", "file": {"file_data": f"data:audio/wav;base64,{PNG}"}})},
}


@pytest.mark.parametrize("body", CLIPS.values(), ids=CLIPS.keys())
def test_a_clip_of_sound_is_as_long_as_its_size_allows(body):
    """90 kB of 16-bit samples at 8 kHz are 5.6 s."""
    prompt = read_prompt(body)
    assert prompt.audio_ms == pytest.approx(5_626, abs=5)
    assert prompt.tokens(words) <= 6 * AUDIO_TOKENS_A_S + 10
    assert prompt.text == ""


@pytest.mark.parametrize(
    ("part", "pages"),
    [
        ({"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": PNG}}, 5),
        ({"type": "document", "source": {"type": "url", "url": "https://host/paper"}}, UNSEEN_PAGES),
        ({"type": "input_file", "file_id": "file-1"}, UNSEEN_PAGES),
        ({"type": "input_file", "filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PNG}"}, 5),
    ],
)
def test_a_document_has_pages_by_its_size(part, pages):
    prompt = read_prompt({"messages": user(part)})
    assert (prompt.pages, prompt.media_tokens) == (pages, pages * PAGE_TOKENS)


def test_encoded_text_counts_by_its_bytes():
    data = base64.b64encode(WORDS.encode()).decode()
    source = {"type": "base64", "media_type": "text/plain", "data": data}
    prompt = read_prompt({"messages": user({"type": "document", "source": source})})
    assert prompt.media_tokens == pytest.approx(len(WORDS) / 3, abs=2)


def test_settings_are_not_read_by_a_model():
    body = {"model": WORDS, "metadata": {"a": WORDS}, "user": WORDS, "logit_bias": {"1": 2}, "litellm_metadata": WORDS}
    assert read_prompt(body) == Prompt()


def test_a_text_is_never_fewer_tokens_than_its_length_allows():
    """Whatever a tokenizer makes of a run of blanks."""
    assert read_prompt({"prompt": " " * 8_000}).tokens(lambda _: 1) == 1_000


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["data", "url", "type", "tools"]), inner)
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["messages", "input", "tools", "image", "x"]), json_values))
def test_any_body_can_be_read(body):
    assert read_prompt(body).tokens(words) >= 0


@pytest.mark.parametrize("kind", [{}, [], {"tool_use": 1}, None, 1, True])
def test_a_type_that_is_no_word_hides_no_text(kind):
    body = {"messages": user({"type": kind, "input": WORDS})}
    assert words(read_prompt(body).text) == words(WORDS)


def test_neither_depth_nor_length_stalls_the_reader():
    deep: dict[str, object] = {}
    place = deep
    for _ in range(50_000):
        place["tools"] = place = {}
    started = time.process_time()
    read_prompt(deep)
    read_prompt({"messages": user({"type": "image_url", "image_url": {"url": "data:" + "a;" * 1_000_000}})})
    read_prompt({"messages": user({"type": "image_url", "image_url": {"url": "A" * 2_000_000 + "!"}})})
    assert time.process_time() - started < 2
