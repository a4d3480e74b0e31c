"""Closes attempts with what LiteLLM and the provider report about their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from ..frozen import replace
from ..host.attempt import Logged
from ..types import AttemptError, Deployment, Endpoint, ErrorClass, Outcome, Price, RequestContext, Usage
from . import client_settings, provider_errors, request_values
from .answers import finish_reasons, generated_text, response_answer, response_id
from .charges import TOOLS, search_size
from .content import EMPTY, is_empty
from .inner_tries import together
from .prices import CHEAPER_TIERS, SERVICE_TIERS
from .raw_answers import heard_id, heard_model, heard_text, is_broken, is_refused, provider_reading
from .stream import StreamReader
from .usage_blocks import Reading
from .usage_units import (
    Translated,
    logged_base_usd,
    logged_cost_usd,
    logged_counts,
    logged_usage,
    passed_usage,
    spoken_counts,
    used_tools,
)

if TYPE_CHECKING:
    from ..host.attempt import OpenAttempt
    from ..plugin import Clock
    from .prices import CostMap
    from .socket_events import ResponseReader
    from .tokenizer import PromptTokenizer

#: HTTP's first error status.
_FIRST_ERROR: Final = 400
_NO_PRICE: Final = Price()
#: The endpoints whose answers are text, of which a provider charges the tokens.
_TEXT_ENDPOINTS: Final = frozenset(
    {
        Endpoint.CHAT,
        Endpoint.MESSAGES,
        Endpoint.RESPONSES,
        Endpoint.COMPLETIONS,
        Endpoint.GENERATE_CONTENT,
        Endpoint.REALTIME,
    }
)
#: The endpoints whose usage is read with what was asked for.
_OTHER_UNITS: Final = frozenset(
    {
        Endpoint.IMAGES,
        Endpoint.SPEECH,
        Endpoint.TRANSCRIPTIONS,
        Endpoint.RERANK,
        Endpoint.SEARCH,
        Endpoint.OCR,
        Endpoint.VIDEOS,
        Endpoint.INTERACTIONS,
    }
)
#: The endpoints whose answers may be text.
_MAY_BE_TEXT: Final = _TEXT_ENDPOINTS | {Endpoint.PASS_THROUGH}
_NOTHING_KNOWN: Final = Reading(Usage(), prompt_known=False, completion_known=False)
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


class Closer:
    """Closes attempts.

    Args:
        prices: Prices what LiteLLM has not priced.
        tokenizer: Counts what the provider has not counted.
        clock: For ``retry-after`` dates.
    """

    def __init__(self, prices: CostMap, tokenizer: PromptTokenizer, clock: Clock) -> None:
        self._prices = prices
        self._tokenizer = tokenizer
        self._clock = clock

    def keep(self, opened: OpenAttempt, response: Any, headers: Mapping[str, str], ctx: RequestContext) -> None:
        """Keep what the provider reports until LiteLLM has priced the answer; only the first report counts."""
        if not opened.answered:
            opened.answered.update(
                headers=headers,
                response=response,
                usage=Translated(ctx.endpoint, response, ctx.body),
                model=request_values.response_model(response),
            )

    def finish(self, opened: OpenAttempt, ctx: RequestContext) -> None:
        """Close an attempt that is still open when its answer is out: LiteLLM reports some successes nowhere."""
        self.succeed(opened, opened.answered.get("response"), ctx)

    def finish_pass_through(self, opened: OpenAttempt, ctx: RequestContext, status: int) -> None:
        """Close the attempt of a pass-through that failed, broke off, or that the client has left.

        Args:
            opened: The attempt.
            ctx: The request.
            status: What the provider answered; 0 when there was no answer.
        """
        if status >= _FIRST_ERROR:
            kind = ErrorClass.of_status(status)
            error = AttemptError(kind=kind, status=status, message=f"the provider answered with status {status}")
            tokens, earlier = self._refused(opened, opened.refusals)
            tokens = self._with_earlier(opened, tokens, ctx, earlier)
            cost = self._prices.cost_usd_micros(opened.attempt.deployment, tokens)
            opened.end(Outcome.ERROR, usage=tokens, cost_usd_micros=cost, status_code=status, error=error)
            return
        opened.awaits_cost = True
        if is_broken(opened.listeners):
            error = AttemptError(kind=ErrorClass.SERVER, message="the provider's answer ended with an error")
            self.end_abandoned(opened, StreamReader(), ctx, Outcome.ERROR, error)
        else:
            self.end_abandoned(opened, StreamReader(), ctx, Outcome.DISCONNECTED)

    def log(self, opened: OpenAttempt, logged: Mapping[str, Any], response: Any) -> None:
        """Note what LiteLLM has logged about a call that succeeded.

        Args:
            opened: The attempt, open or closed.
            logged: LiteLLM's ``standard_logging_object``.
            response: The answer that it has logged.
        """
        self._log(opened, logged, response, failure=False)

    def log_failure(self, opened: OpenAttempt, logged: Mapping[str, Any]) -> None:
        """Note what LiteLLM has logged about a call that failed: of a stream that broke, what came before costs something.

        Args:
            opened: The attempt, open or closed.
            logged: LiteLLM's ``standard_logging_object``.
        """
        self._log(opened, logged, None, failure=True)

    def _log(self, opened: OpenAttempt, logged: Mapping[str, Any], response: Any, *, failure: bool) -> None:
        deployment = opened.attempt.deployment
        cost = logged_cost_usd(logged)
        if not cost and (logged.get("call_type") == "pass_through_endpoint" or self._unknown(deployment)):
            # LiteLLM also logs 0 where it does not know the price, or has not read the answer.
            cost = None

        def used() -> Logged:
            usage = logged_usage(logged) or passed_usage(response)
            micros = None if cost else self._prices.cost_usd_micros(deployment, usage)
            counted = logged_counts(logged, usage)
            if opened.ctx.endpoint is Endpoint.SPEECH:
                counted = spoken_counts(opened.ctx.body, counted)
            return Logged(usage, micros, counted, logged_base_usd(logged))

        opened.log_cost(cost, used, failure=failure, cached=logged.get("cache_hit") is True)

    def succeed(
        self,
        opened: OpenAttempt,
        response: Any,
        ctx: RequestContext,
        *,
        cached: bool = False,
        later: bool = False,
    ) -> None:
        """Close an attempt with the whole answer.

        Args:
            opened: The attempt.
            response: LiteLLM's answer; None when it is not known.
            ctx: The request.
            cached: LiteLLM's response cache has answered, as its logging object says.
            later: What it uses is not known yet, and charged when it is.
        """
        if later:
            opened.works_later = True
            opened.end(Outcome.OK, usage=Usage(), cost_usd_micros=0, status_code=200)
            return
        if not ctx.generates:
            # What a stored answer says was used was charged when it was made.
            opened.end(Outcome.OK, status_code=200)
            return
        hidden = request_values.hidden_params(response)
        answered = opened.answered
        translated = answered.get("usage") or Translated(ctx.endpoint, response, ctx.body)
        assert isinstance(translated, Translated)  # noqa: S101  # written by keep
        # Of several texts, LiteLLM says so already when its cache has had one: it asks the provider for the others.
        partly = ctx.endpoint is Endpoint.EMBEDDINGS and opened.provider_status is not None
        cached = cached or (bool(hidden.get("cache_hit")) and not partly)
        tokens = _kept(translated.usage) if cached else self._used(opened, translated, response, ctx)
        cost = 0 if cached else self._prices.cost_usd_micros(opened.attempt.deployment, tokens)
        opened.awaits_cost = not cached
        headers = answered.get("headers") or request_values.provider_headers(hidden.get("additional_headers"))
        opened.end(
            Outcome.OK,
            usage=tokens,
            cost_usd_micros=cost,
            status_code=200,
            headers=headers if isinstance(headers, dict) else _NO_HEADERS,
            model=_answering(tokens, opened, answered.get("model") or request_values.response_model(response), ctx),
            error=EMPTY if is_empty(response) else None,
            cached=cached,
            answer=partial(response_answer, response),
            response_id=None if opened.span is None else heard_id(opened.listeners, response_id(response)),
            finish_reasons=() if opened.span is None else finish_reasons(response),
        )

    def _unknown(self, deployment: Deployment) -> bool:
        return self._prices.get(deployment) == _NO_PRICE

    def fail(self, opened: OpenAttempt, err: BaseException) -> None:
        """Close an attempt with the error that ended it.

        An answer that LiteLLM could not read is charged by the provider: what it has counted was used, else that is unknown.
        So is an error in which it has counted something.
        One that it no longer waits for may be charged, too, as that of a client that has left.
        """
        headers = request_values.provider_headers(
            getattr(err, "litellm_response_headers", None), getattr(getattr(err, "response", None), "headers", None)
        )
        error = client_settings.blamed(provider_errors.attempt_error(err, headers, self._clock.now()), opened.ctx)
        tokens, earlier = self._refused(opened, opened.refusals)
        cut = bool(opened.given_up or opened.abandoned) and opened.ctx.generates
        if opened.given_up and opened.ctx.generates:
            tokens = self._streamed(opened, StreamReader(), opened.ctx)
        elif tokens is not None or not opened.listeners:
            tokens = self._with_earlier(opened, tokens, opened.ctx, earlier)
            opened.awaits_cost = tokens is not None
        cost = self._prices.cost_usd_micros(opened.attempt.deployment, tokens)
        opened.end(
            Outcome.ERROR,
            usage=tokens,
            cost_usd_micros=cost,
            cut=cut,
            error=error,
            status_code=_status(opened, error),
            headers=headers,
        )

    def fail_unreported(
        self,
        opened: OpenAttempt,
        err: BaseException,
        ctx: RequestContext,
        responded: Any = None,
        reader: StreamReader | None = None,
    ) -> None:
        """Close an attempt with an error that LiteLLM reports to no callback of the attempt.

        LiteLLM reads the beginning of a stream, and refuses some whole answers, before it passes anything on: the provider
        has answered, and bills it.

        Args:
            opened: The attempt.
            err: What LiteLLM goes on with.
            ctx: The request, for an estimate of its prompt.
            responded: The headers of the provider's response, as the HTTP client saw them; None without a response.
            reader: Has read the stream as far as it came; None before its first piece.
        """
        if opened.closed:
            return
        if not opened.answered and not (ctx.stream and opened.listeners):
            self.fail(opened, err)
            return
        kept = opened.answered.get("usage")
        usage = kept.usage if isinstance(kept, Translated) else None
        tokens = self._streamed(opened, reader or StreamReader(), ctx) if usage is None else usage
        # LiteLLM has logged it already, with what it costs: otherwise its error would not be known.
        opened.awaits_cost = tokens is not None
        given = opened.answered.get("headers")
        headers = given if isinstance(given, dict) and given else request_values.provider_headers(responded)
        why = client_settings.blamed(provider_errors.attempt_error(err, headers, self._clock.now()), ctx)
        opened.end(
            Outcome.ERROR,
            usage=tokens,
            cost_usd_micros=self._prices.cost_usd_micros(opened.attempt.deployment, tokens),
            status_code=_status(opened, why),
            headers=headers,
            error=why,
        )

    def end_stream(
        self,
        opened: OpenAttempt,
        reader: StreamReader,
        headers: Mapping[str, str],
        error: BaseException | None,
        ctx: RequestContext,
        *,
        cached: bool = False,
    ) -> None:
        """Close an attempt at the end of its stream; what the provider has not counted is estimated.

        Args:
            opened: The attempt.
            reader: Has read the stream.
            headers: The provider's.
            error: What ended the stream early; None at its regular end.
            ctx: The request, for an estimate of its prompt.
            cached: The answer came from LiteLLM's response cache.
        """
        left = isinstance(error, asyncio.CancelledError | GeneratorExit)
        begun = left or error is None or opened.listeners or reader.text or reader.hidden
        tokens = _kept(reader.usage) if cached or not begun else self._streamed(opened, reader, ctx)
        opened.awaits_cost = bool(begun) and not cached and tokens is not None
        facts: dict[str, Any] = {
            "usage": tokens,
            "cost_usd_micros": 0 if cached else self._prices.cost_usd_micros(opened.attempt.deployment, tokens),
            "cached": cached,
            "headers": headers,
            "model": _answering(tokens, opened, reader.model, ctx),
        }
        if opened.span is not None:
            facts["response_id"] = heard_id(opened.listeners, reader.id)
            facts["finish_reasons"] = reader.finish_reasons if error is None else ("error",)
        if (error is None or left) and (failure := _reported_failure(reader)) is not None:
            # Also when the client left because of it.
            opened.end(Outcome.ERROR, status_code=_status(opened, failure), error=failure, **facts)
        elif error is None:
            empty = EMPTY if ctx.generates and reader.empty(ctx.endpoint) else None
            opened.end(Outcome.OK, status_code=200, answer=reader.answer, error=empty, **facts)
        elif left:
            opened.end(Outcome.DISCONNECTED, **facts)
        else:
            why = client_settings.blamed(provider_errors.attempt_error(error, headers, self._clock.now()), ctx)
            opened.end(Outcome.ERROR, status_code=_status(opened, why), error=why, **facts)

    def end_abandoned(
        self,
        opened: OpenAttempt,
        reader: StreamReader,
        ctx: RequestContext,
        outcome: Outcome,
        error: AttemptError | None = None,
    ) -> None:
        """Close an attempt whose answer is no longer wanted; its usage is estimated, since it is billed.

        Args:
            opened: The attempt.
            reader: Has read the stream so far.
            ctx: The request, for an estimate of its prompt.
            outcome: Unless the stream itself has reported a failure.
            error: Why it ended, for the outcome ``error``.
        """
        tokens = self._streamed(opened, reader, ctx)
        cost = self._prices.cost_usd_micros(opened.attempt.deployment, tokens)
        if error is None and (error := _reported_failure(reader)) is not None:
            outcome = Outcome.ERROR
        cut = not opened.awaits_cost
        if outcome is Outcome.DISCONNECTED and opened.first_token_at is not None:
            # What a client has read of a stream before it left is logged.
            opened.awaits_cost = True
        model = _answering(tokens, opened, reader.model, ctx)
        named = heard_id(opened.listeners, reader.id)
        opened.end(outcome, usage=tokens, cost_usd_micros=cost, model=model, error=error, cut=cut, response_id=named)

    def end_spoken(
        self, opened: OpenAttempt, reader: ResponseReader, ctx: RequestContext, error: AttemptError | None, *, cut: bool
    ) -> Usage:
        """Close the attempt of a response on a websocket; what the provider has not counted is estimated.

        Args:
            opened: The attempt.
            reader: Has read the response.
            ctx: The request, for an estimate of its prompt.
            error: Why it failed; None when it did not.
            cut: The connection has ended before it.

        Returns:
            What it used.
        """
        reading = reader.reading() or _NOTHING_KNOWN
        usage = self._completed(opened, reading, {}, ctx, lambda: reader.generated)
        if not reading.completion_known and reader.sound_tokens:
            spoken = usage.completion_tokens + reader.sound_tokens
            usage = replace(usage, completion_tokens=spoken, audio_completion_tokens=reader.sound_tokens)
        outcome = Outcome.ERROR if error is not None else Outcome.DISCONNECTED if cut else Outcome.OK
        opened.end(
            outcome,
            usage=usage,
            cost_usd_micros=self._prices.cost_usd_micros(opened.attempt.deployment, usage),
            status_code=None if error is None else error.status,
            model=reader.model,
            error=error,
            response_id=reader.id,
            finish_reasons=reader.finish_reasons if outcome is Outcome.OK else ("error",),
        )
        return usage

    def end_transcription(self, opened: OpenAttempt, usage: Usage) -> None:
        """Close the attempt of one transcribed utterance on a websocket."""
        cost = self._prices.cost_usd_micros(opened.attempt.deployment, usage)
        opened.end(Outcome.OK, usage=usage, cost_usd_micros=cost, model=usage.model)

    def _refused(self, opened: OpenAttempt, refusals: Sequence[object]) -> tuple[Usage | None, Sequence[object]]:
        """Return what an attempt that failed has used, where the provider says so, and the errors that are not in it.

        Args:
            opened: The attempt.
            refusals: What has listened to the provider's errors.
        """
        reading, earlier = provider_reading(opened.listeners), refusals
        if reading is None or not reading.complete:
            # Some errors say what was used.
            reading, earlier = provider_reading(refusals[-1:]), refusals[:-1]
        if reading is None or not opened.ctx.generates:
            return None, earlier
        return self._completed(opened, reading, {}, opened.ctx, str), earlier

    def _with_earlier(
        self, opened: OpenAttempt, last: Usage | None, ctx: RequestContext, refusals: Sequence[object]
    ) -> Usage | None:
        """Return what all tries of an attempt used: the SDK of its provider may have tried again by itself.

        Args:
            opened: The attempt.
            last: What its last try used; None when that is not known or nothing.
            ctx: The request, for an estimate of its prompt.
            refusals: What has listened to the errors before, of which some say what was used.
        """
        if not (refusals or opened.abandoned) or not ctx.generates:
            return last
        # The provider may charge for those that were not waited for.
        unknown = replace(_NOTHING_KNOWN, usage=Usage(model=None if last is None else last.model))
        readings = [unknown] * opened.abandoned
        readings += [found for one in refusals if (found := provider_reading((one,))) is not None]
        return together([self._completed(opened, reading, {}, ctx, str) for reading in readings], last)

    def _used(self, opened: OpenAttempt, translated: Translated, response: Any, ctx: RequestContext) -> Usage | None:
        """Return what a whole answer used, with the tries before it; None when that is not known."""
        usage = self._answered(opened, translated, response, ctx)
        if usage is None and ctx.endpoint is Endpoint.MODERATIONS:
            # No provider counts them, and some charge for them.
            prompt = self._tokenizer.estimate(opened.attempt.deployment.model, ctx.body)
            usage = Usage(prompt_tokens=prompt, estimated=True)
        return usage if usage is None else self._with_earlier(opened, usage, ctx, opened.refusals)

    def _answered(
        self, opened: OpenAttempt, translated: Translated, response: Any, ctx: RequestContext
    ) -> Usage | None:
        """Return what a whole answer used: as the provider says, else as LiteLLM does; what is missing is estimated."""
        reading = provider_reading(opened.listeners, lambda: _said(translated.usage))

        def generated() -> str:
            return generated_text(response) or heard_text(opened.listeners)

        if reading is not None and ctx.endpoint not in _OTHER_UNITS:
            return _said(self._completed(opened, reading, translated.tools, ctx, generated))
        answering = _answering(
            None, opened, opened.answered.get("model") or request_values.response_model(response), ctx
        )
        named = _named(_said(translated.usage), answering)
        if reading is not None and named is not None:
            said = reading.usage
            if ctx.endpoint is Endpoint.SPEECH and said.total_tokens:
                # LiteLLM passes the events of a spoken stream on unread.
                return replace(said, characters=named.characters, model=named.model)
            return replace(
                named, provider_cost_usd=said.provider_cost_usd, service_tier=said.service_tier, raw=said.raw
            )
        if reading is None:
            written = response is not None and ctx.endpoint in _TEXT_ENDPOINTS
            if named is not None or not (written or heard_text(opened.listeners, streamed=True)):
                return _counted_here(opened, named, ctx)
            reading = replace(_NOTHING_KNOWN, usage=Usage(model=answering))
        return _said(self._completed(opened, reading, translated.tools, ctx, generated))

    def _streamed(self, opened: OpenAttempt, reader: StreamReader, ctx: RequestContext) -> Usage | None:
        """Return what a stream used, with the tries before it; None: the provider has refused it, and counted nothing."""
        return self._with_earlier(opened, self._of_stream(opened, reader, ctx), ctx, opened.refusals)

    def _of_stream(self, opened: OpenAttempt, reader: StreamReader, ctx: RequestContext) -> Usage | None:
        """Return what a stream used, however it ended: a client that leaves before the first content pays for the input.

        None: the provider has refused it, and counted nothing.
        """
        translated = _said(reader.usage)
        reading = provider_reading(opened.listeners, lambda: translated)
        if reading is None and translated is not None:
            # LiteLLM writes the cost that it has computed into the usage of a stream, where providers write theirs.
            named = replace(
                translated,
                model=_answering(translated, opened, reader.model, ctx),
                provider_cost_usd=None,
                service_tier=translated.service_tier or _asked_tier(ctx),
            )
            return _counted_here(opened, named, ctx) or named
        if reading is None and is_refused(opened.listeners):
            return None
        if reading is None:
            begun = reader.partial_usage()
            # A translated stream begins with zeros: LiteLLM knows the input only at the end.
            known = begun is not None and begun.prompt_tokens > 0
            named = begun or Usage(model=_answering(None, opened, reader.model, ctx))
            reading = Reading(named, prompt_known=known, completion_known=False)
        return self._completed(
            opened, reading, used_tools(translated), ctx, lambda: reader.generated or heard_text(opened.listeners)
        )

    def _completed(
        self,
        opened: OpenAttempt,
        reading: Reading,
        tools: Mapping[str, int],
        ctx: RequestContext,
        generated: Callable[[], str],
    ) -> Usage:
        """Return the usage with what LiteLLM alone knows, and with estimates of what the provider has not counted."""
        usage = reading.usage
        if tools:
            missing: dict[str, Any] = {n: tools[n] for n in TOOLS if n in tools and getattr(usage, n) is None}
            usage = replace(usage, **missing) if missing else usage
        if usage.service_tier is None and (asked := _asked_tier(ctx)) is not None:
            usage = replace(usage, service_tier=asked)
        if usage.searches and usage.search_context is None:
            usage = replace(usage, search_context=_asked_size(opened, ctx))
        if reading.complete and reading.undivided and ctx.endpoint in _MAY_BE_TEXT:
            counted = self._tokenizer.count_text(opened.attempt.deployment.model, generated())
            answer = min(usage.total_tokens, max(counted, usage.reasoning_tokens))
            return replace(usage, prompt_tokens=usage.total_tokens - answer, completion_tokens=answer)
        if reading.complete:
            silent = not usage.completion_tokens and ctx.endpoint in _TEXT_ENDPOINTS and generated()
            return replace(usage, contradictory=True) if silent else usage
        model = opened.attempt.deployment.model
        if not reading.prompt_known:
            # Not less than the parts that are known, such as what was cached.
            counted = self._tokenizer.estimate(model, ctx.body) + ctx.carried_tokens
            usage = replace(usage, prompt_tokens=max(usage.prompt_tokens, counted), estimated=True)
        if not reading.completion_known and ctx.endpoint in _MAY_BE_TEXT:
            counted = self._tokenizer.count_text(model, generated())
            usage = replace(usage, completion_tokens=max(usage.completion_tokens, counted), estimated=True)
        return usage


def _asked_tier(ctx: RequestContext) -> str | None:
    """Return the service tier that a request asks for, where tiers have prices: some providers do not say which served.

    A cheaper one counts only where the provider says so: the request may not have been sent with it.
    """
    tier = ctx.body.get("service_tier")
    return tier.lower() if isinstance(tier, str) and tier.lower() in SERVICE_TIERS - CHEAPER_TIERS else None


def _asked_size(opened: OpenAttempt, ctx: RequestContext) -> str | None:
    """Return the size of searches that a request asks for, else the one that the provider takes."""
    options = ctx.body.get("web_search_options")
    asked = search_size(options.get("search_context_size")) if isinstance(options, Mapping) else None
    return asked or ("low" if opened.attempt.deployment.provider == "perplexity" else None)


def _counted_here(opened: OpenAttempt, usage: Usage | None, ctx: RequestContext) -> Usage | None:
    """Return LiteLLM's usage, as an estimate where the provider was heard and has not counted: LiteLLM does it then."""
    if usage is None or not opened.listeners or ctx.endpoint not in _TEXT_ENDPOINTS:
        return usage
    return replace(usage, estimated=True)


def _said(usage: Usage | None) -> Usage | None:
    """Return the usage; None for zeros alone: LiteLLM's objects begin with them, and no answer uses nothing."""
    return None if usage is None or usage.is_empty else usage


def _kept(usage: Usage | None) -> Usage | None:
    """Return the usage of an answer from the cache: a cost in it is LiteLLM's, or what was charged when it was made."""
    return None if usage is None else replace(usage, provider_cost_usd=None)


def _named(usage: Usage | None, model: str | None) -> Usage | None:
    """Return the usage with the model that has answered, where it does not say it itself."""
    return usage if usage is None or usage.model is not None else replace(usage, model=model)


def _answering(usage: Usage | None, opened: OpenAttempt, named: object, ctx: RequestContext) -> str | None:
    """Return the model that has answered: as the provider names it, else as LiteLLM does.

    LiteLLM writes its own name for a model into some answers, and into the pieces of some streams.
    """
    said = None if usage is None else usage.model
    return said or heard_model(opened.listeners) or _providers(named, opened, ctx)


def _providers(model: object, opened: OpenAttempt, ctx: RequestContext) -> str | None:
    """Return the model in an answer; None where it is the name that the client has asked for, which LiteLLM puts there.

    It does so in answers from its cache, for example.
    """
    deployment = opened.attempt.deployment
    if not isinstance(model, str) or (model in {ctx.model, deployment.group} and model != deployment.model):
        return None
    return model or None


def _status(opened: OpenAttempt, error: AttemptError) -> int | None:
    """Return the status that the provider of a failed attempt has answered: LiteLLM has one for its own errors, too."""
    answered = opened.provider_status is not None and opened.provider_status < _FIRST_ERROR
    return opened.provider_status if answered and not is_refused(opened.listeners) else error.status


def _reported_failure(reader: StreamReader) -> AttemptError | None:
    """Return why a stream has failed that reported so itself."""
    if reader.failed is None:
        return None
    return AttemptError(kind=ErrorClass.SERVER, message=f"the stream ended with {reader.failed}")
