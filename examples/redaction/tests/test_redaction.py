"""The provider sees placeholders, the client what it has sent: plain, in pieces of any size, in every shape."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.testing import ContractSuite, Harness, error, ok
from pointsman.types import Endpoint
from pointsman_redaction.plugin import plugin
from pointsman_redaction.redaction import Tail, Vault

ADDRESS, PHONE, CARD = "ada@example.com", "+44 20 7946 0958", "4111 1111 1111 1111"
ASKED = f"I am {ADDRESS}, call {PHONE}, charge {CARD}. Again: {ADDRESS}"
KINDS = ("email", "phone", "card")
ENDPOINTS = (Endpoint.CHAT, Endpoint.MESSAGES, Endpoint.RESPONSES, Endpoint.COMPLETIONS)


class TestContract(ContractSuite):
    """It is a plugin like any other."""

    info = plugin
    bad_configs = (({"kinds": ["names"]}, "kinds"),)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_the_provider_sees_placeholders(endpoint: Endpoint, stream: bool) -> None:
    """One placeholder for one value; the answer has the values again."""
    async with Harness([plugin]) as h:
        body = {"messages": [{"role": "user", "content": ASKED}], "system": ASKED}
        answer = ok("Dear <EMAIL_1> , we charge <CARD_2> and call <PHONE_3> , not <EMAIL_9>")
        result = await h.request(endpoint=endpoint, stream=stream, body=body, script=answer)
        await h.settled()
        assert h.faults == {}
        assert h.host.statuses()["redaction"].details["open"] == 0
    sent = json.dumps(result.sent)
    assert not any(value in sent for value in (ADDRESS, PHONE, CARD))
    assert result.sent[0]["system"] == "I am <EMAIL_1>, call <PHONE_3>, charge <CARD_2>. Again: <EMAIL_1>"
    assert result.text == f"Dear {ADDRESS} , we charge {CARD} and call {PHONE} , not <EMAIL_9>"


async def test_attempts_share_their_placeholders() -> None:
    """A retry is redacted in the same way."""
    async with Harness([plugin]) as h:
        body = {"messages": [{"role": "user", "content": ASKED}]}
        result = await h.request(body=body, script=[error(503), ok("<EMAIL_1>")])
    assert result.sent[0] == result.sent[1]
    assert result.text == ADDRESS


async def test_requests_without_personal_data_are_left_alone() -> None:
    """Nothing is changed, and nothing is remembered."""
    async with Harness([plugin]) as h:
        result = await h.request(
            body={"messages": [{"role": "user", "content": "Hello <EMAIL_1>"}]}, script=ok("<EMAIL_1>")
        )
        assert result.text == "<EMAIL_1>"
        assert h.host.statuses()["redaction"].details["attempts"] == 0


@given(st.data())
def test_however_a_text_is_cut_it_is_restored(data: st.DataObject) -> None:
    """Pieces restore to the same text as the whole."""
    vault = Vault(KINDS)
    vault.redact(ASKED)
    parts = st.sampled_from(["<EMAIL_1>", "<CARD_2>", "<", ">", "<EMAIL_", "a < b", "text ", "<EMAIL_77>"])
    text = "".join(data.draw(st.lists(parts, max_size=8)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    tail = Tail(vault)
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert "".join([*(tail.push(piece) for piece in pieces), tail.end()]) == vault.restore(text)


@given(st.text(max_size=200))
def test_any_text_survives(text: str) -> None:
    """Redacted and restored, every text is as it was."""
    vault = Vault(KINDS)
    assert vault.restore(vault.redact(text.replace("<", ""))) == text.replace("<", "")
