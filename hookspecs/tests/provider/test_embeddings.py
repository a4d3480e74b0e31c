from __future__ import annotations

import math

import pytest

from pointsman.testing.provider import Behaviour, count_tokens


def test_vectors_have_length_one_and_follow_the_text(oai):
    answer = oai.embeddings.create(model="emb", input=["one text", "another", "one text"])
    first, second, third = (item.embedding for item in answer.data)
    assert first == third != second
    assert math.isclose(math.hypot(*first), 1.0, abs_tol=1e-5)
    assert len(first) == 1536
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert answer.usage.prompt_tokens == 2 * count_tokens("one text") + count_tokens("another")


def test_base64_and_plain_numbers_are_the_same_vector(oai):
    packed = oai.embeddings.create(model="emb", input="text").data[0].embedding
    plain = oai.embeddings.create(model="emb", input="text", encoding_format="float").data[0].embedding
    assert packed == plain


def test_dimensions_come_from_the_request_or_the_behaviour(oai, upstream):
    upstream.behave("emb", Behaviour(dimensions=8))
    assert len(oai.embeddings.create(model="emb", input="text").data[0].embedding) == 8
    assert len(oai.embeddings.create(model="emb", input="text", dimensions=4).data[0].embedding) == 4


@pytest.mark.parametrize(("given", "vectors", "tokens"), [([1, 2, 3], 1, 3), ([[1, 2], [3]], 2, 3)])
def test_token_lists_count_as_they_are_long(oai, given, vectors, tokens):
    answer = oai.embeddings.create(model="emb", input=given)
    assert (len(answer.data), answer.usage.prompt_tokens) == (vectors, tokens)


def test_azure_deployment_embeds(azure):
    assert len(azure.embeddings.create(model="my-deployment", input="text").data) == 1


def test_models_are_those_with_a_behaviour_in_each_providers_shape(oai, claude, upstream):
    for name in ("gpt-b", "gpt-a", "*"):
        upstream.behave(name, Behaviour())
    assert [model.id for model in oai.models.list()] == ["gpt-a", "gpt-b"]
    assert [model.id for model in claude.models.list()] == ["gpt-a", "gpt-b"]
