"""LiteLLM's tokenizers on what a request contains."""

import time

import pytest

MODEL = "gpt-4o-mini"


@pytest.fixture(scope="module")
def tokenizer():
    return pytest.importorskip("pointsman.litellm.tokenizer").PromptTokenizer()


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
