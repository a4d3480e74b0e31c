"""What tokens cost: exact decimals, and integers of millionths of a US dollar. Pure functions.

Nothing is computed in binary floating point. An amount is exact as long as it has at most 60 digits, and is rounded half
to even to micro-dollars once, at the end.

No attempt costs more than ten million dollars: whoever says so has mistyped a price or a margin. Below that, hundreds of
thousands of attempts add up within the 64 bits that databases have for a sum.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pointsman.types import Price, Usage

#: So that neither another library's context nor the thread has a say in the result. What is no number any more is not
#: raised but refused by ``believable``.
CONTEXT: Final = Context(prec=60, rounding=ROUND_HALF_EVEN, traps=[])
MOST_USD_MICROS: Final = 10**13
_MICROS: Final = Decimal(1_000_000)
_MOST_USD: Final = MOST_USD_MICROS / _MICROS
_ONE: Final = Decimal(1)
_ZERO: Final = Decimal(0)


def cost_usd(usage: Usage, price: Price) -> Decimal | None:
    """Return what an answer cost, in US dollars.

    Cached, written and audio tokens are parts of the prompt, reasoning and audio tokens parts of the answer; each part
    is charged once, at its own price where there is one, else at the price of the whole. A provider that reports parts
    that are larger than the whole is charged for the whole.

    Args:
        usage: The tokens.
        price: Unit prices for a prompt of this size (``Price.at``).

    Returns:
        The cost, or None when a price that is needed is not known.
    """
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    if (prompt and price.input_usd is None) or (completion and price.output_usd is None):
        return None
    cached = min(usage.cached_tokens, prompt)
    written = min(usage.cache_write_tokens, prompt - cached)
    heard = min(usage.audio_prompt_tokens, prompt - cached - written)
    thought = min(usage.reasoning_tokens, completion)
    spoken = min(usage.audio_completion_tokens, completion - thought)
    parts = (
        (prompt - cached - written - heard, price.input_usd),
        (cached, price.input_usd if price.cache_read_usd is None else price.cache_read_usd),
        (written, price.input_usd if price.cache_write_usd is None else price.cache_write_usd),
        (heard, price.input_usd if price.audio_input_usd is None else price.audio_input_usd),
        (completion - thought - spoken, price.output_usd),
        (thought, price.output_usd if price.reasoning_usd is None else price.reasoning_usd),
        (spoken, price.output_usd if price.audio_output_usd is None else price.audio_output_usd),
    )
    total = _ZERO
    for tokens, unit_usd in parts:
        if tokens and unit_usd:
            total = CONTEXT.add(total, CONTEXT.multiply(Decimal(tokens), unit_usd))
    return total


def believable(usd: Decimal | None) -> Decimal | None:
    """Return the amount, or None for one that cannot be true."""
    return usd if usd is not None and usd.is_finite() and 0 <= usd <= _MOST_USD else None


def with_margin(cost: Decimal, margin_ratio: Decimal) -> Decimal:
    """Return what the tenant pays for something that cost this much."""
    return CONTEXT.multiply(cost, CONTEXT.add(_ONE, margin_ratio)) if margin_ratio else cost


def micros(usd: Decimal) -> int:
    """Return dollars as integer micro-dollars, rounded half to even."""
    return int(CONTEXT.multiply(usd, _MICROS).to_integral_value(ROUND_HALF_EVEN, CONTEXT))


def from_micros(usd_micros: int) -> Decimal:
    """Return micro-dollars as dollars."""
    return CONTEXT.divide(Decimal(usd_micros), _MICROS)


def text(value: Decimal) -> str:
    """Return a decimal in its one shortest plain form: no exponent, no trailing zeros."""
    if not value:
        return "0"
    return f"{value.normalize(CONTEXT):f}"
