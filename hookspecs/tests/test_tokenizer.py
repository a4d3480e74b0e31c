"""LiteLLM's tokenizers on what a request contains."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

MODEL = "gpt-4o-mini"


def tokenizer_module():
    return pytest.importorskip("pointsman.litellm.tokenizer")


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_module().PromptTokenizer()


def test_a_prompt_is_counted_by_its_models_tokenizer(tokenizer):
    body = {"messages": [{"role": "user", "content": "hi"}], "system": "one two three"}
    assert tokenizer.count(MODEL, body) == 1 + 3 + 4 + 3


@pytest.mark.parametrize("text", ["word " * 3_000, "Ein längerer Satz, der sich ständig wiederholt. " * 400])
def test_a_long_prompt_is_estimated_without_delay_and_close_to_its_count(tokenizer, text):
    body = {"messages": [{"role": "user", "content": text}]}
    counted = tokenizer.count(MODEL, body)
    started = time.process_time()
    estimate = tokenizer.estimate(MODEL, body)
    assert estimate == pytest.approx(counted, rel=0.05)
    assert time.process_time() - started < 0.1


def test_a_sample_sees_all_parts_of_a_mixed_text(tokenizer):
    """Half of it is dense, half of it is blank."""
    body = {"prompt": "字" * 20_000 + " " * 20_000}
    assert tokenizer.estimate(MODEL, body) == pytest.approx(tokenizer.count(MODEL, body), rel=0.1)


def test_nothing_is_hidden_between_the_pieces_of_a_sample(tokenizer):
    """Not even by a text that is blank wherever pieces of equal distance would be taken."""
    text = (" " * 250 + "字" * 2_250) * 1_600
    assert tokenizer.count_text(MODEL, text) == pytest.approx(2_250 * 1_600, rel=0.2)


def test_an_extremely_long_text_does_not_take_minutes(tokenizer):
    text = "word " * 2_000_000
    assert tokenizer.count_text(MODEL, text) == pytest.approx(2_000_000, rel=0.1)


@pytest.mark.parametrize("model", ["meta-llama/Llama-3-8b", "llama-2-7b", "replicate/any", "command-r-plus"])
def test_no_vocabulary_is_downloaded_within_a_request(tokenizer, monkeypatch, model):
    """LiteLLM asks the network for these, and waits."""
    asked = []
    monkeypatch.setattr("litellm.utils.huggingface_tokenizer_kind", asked.append)
    assert tokenizer.count_text(model, "one two three") == 3
    assert model not in asked


def test_what_is_loaded_first_is_all_that_counting_needs(tokenizer):
    tokenizer.load()
    started = time.process_time()
    for model in (MODEL, "claude-haiku-4-5", "unknown/model", ""):
        tokenizer.count_text(model, "one two three")
    assert time.process_time() - started < 0.1


@settings(max_examples=settings.default.max_examples // 2)
@given(
    model=st.sampled_from(["gpt-4o-mini", "gpt-4", "gpt-3.5-turbo", "gpt-35-turbo", "o1", "claude-2"])
    | st.sampled_from(
        ["claude-haiku-4-5", "anthropic/claude-haiku-4-5", "azure/gpt-35-turbo", "openai/gpt-4o", "", "own"]
    )
    | st.text(max_size=20),
    text=st.text(st.characters(), max_size=300)
    | st.text("ab 字é\n<|endoftext|>", max_size=60).map(lambda part: part * 40),
)
def test_a_text_is_counted_as_litellm_counts_it(tokenizer, model, text):
    litellm = pytest.importorskip("litellm")
    assert tokenizer.count_text(model, text) == litellm.token_counter(model=model, text=text)


def test_the_vocabulary_of_a_model_is_chosen_once_for_several_texts(tokenizer, monkeypatch):
    chosen = []
    module = tokenizer_module()
    find = module.token_counter._get_count_function
    monkeypatch.setattr(module.token_counter, "_get_count_function", lambda model: chosen.append(model) or find(model))
    assert [tokenizer.count_text("chosen/once", text) for text in ("one", "one two", "one two three")] == [1, 2, 3]
    assert chosen == ["chosen/once"]
    assert tokenizer.count_text("long" * 100, "one") == tokenizer.count_text("long" * 100, "one") == 1
    assert chosen[1:] == ["long" * 100] * 2  # a client's own names do not fill the memory


def test_the_vocabulary_of_a_model_is_chosen_again_after_a_while(monkeypatch):
    """Which models are whose changes with the cost map."""
    module, litellm = tokenizer_module(), pytest.importorskip("litellm")
    now = [0.0]
    tokenizer = module.PromptTokenizer(lambda: now[0])
    text = "Ein längerer Satz, der sich ständig wiederholt. "
    before = tokenizer.count_text("o1-renamed", text)
    monkeypatch.setattr(
        litellm, "open_ai_chat_completion_models", {*litellm.open_ai_chat_completion_models, "o1-renamed"}
    )
    now[0] += module._FRESH_S
    assert before != tokenizer.count_text("o1-renamed", text) == litellm.token_counter(model="o1-renamed", text=text)


def test_texts_are_counted_by_the_public_function_where_litellm_has_no_other(tokenizer, monkeypatch):
    monkeypatch.delattr(tokenizer_module().token_counter, "_get_count_function")
    monkeypatch.setattr("litellm.token_counter", lambda *, model, text: len(model + text))
    assert tokenizer.count_text("public/function", "one") == len("public/functionone")


def test_nothing_is_counted_where_litellms_counter_is_disabled(tokenizer, monkeypatch):
    monkeypatch.setattr("litellm.disable_token_counter", True)
    assert tokenizer.count_text(MODEL, "one two three") == 0
