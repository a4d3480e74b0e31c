from __future__ import annotations

from typing import TYPE_CHECKING

import anthropic
import httpx
import openai
import pytest

from pointsman.testing.provider import UpstreamServer

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def running() -> Iterator[UpstreamServer]:
    with UpstreamServer() as server:
        yield server


@pytest.fixture
def upstream(running: UpstreamServer) -> UpstreamServer:
    """Give an upstream that remembers nothing."""
    running.reset()
    return running


@pytest.fixture(scope="session")
def openai_client(running: UpstreamServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="sk-secret", max_retries=0, timeout=20) as client:
        yield client


@pytest.fixture(scope="session")
def anthropic_client(running: UpstreamServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=running.url, api_key="sk-secret", max_retries=0, timeout=20) as client:
        yield client


@pytest.fixture(scope="session")
def azure_client(running: UpstreamServer) -> Iterator[openai.AzureOpenAI]:
    with openai.AzureOpenAI(
        azure_endpoint=running.url, api_key="sk-secret", api_version="2024-10-21", max_retries=0, timeout=20
    ) as client:
        yield client


@pytest.fixture(scope="session")
def http_client(running: UpstreamServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.url, trust_env=False, timeout=20) as client:
        yield client


@pytest.fixture
def oai(openai_client: openai.OpenAI, upstream: UpstreamServer) -> openai.OpenAI:
    return openai_client


@pytest.fixture
def claude(anthropic_client: anthropic.Anthropic, upstream: UpstreamServer) -> anthropic.Anthropic:
    return anthropic_client


@pytest.fixture
def azure(azure_client: openai.AzureOpenAI, upstream: UpstreamServer) -> openai.AzureOpenAI:
    return azure_client


@pytest.fixture
def http(http_client: httpx.Client, upstream: UpstreamServer) -> httpx.Client:
    return http_client
