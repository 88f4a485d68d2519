"""What a vendor's model can be asked for, where models differ."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

# How a model is asked to reason: `budget` = a number of tokens, `adaptive` = by itself, with an effort;
# `effort` = OpenAI's reasoning_effort; `none` = not at all.
Reasoning = Literal["none", "budget", "adaptive", "effort"]


@dataclass(frozen=True, slots=True)
class ModelTraits:
    """``sampling``: it takes temperature, top_p and top_k. ``later_system``: it takes system messages in
    the middle of a conversation. ``xhigh``: it knows this effort, between high and max. ``budget_too``: one
    that reasons adaptively still takes a number of tokens."""

    sampling: bool = True
    reasoning: Reasoning = "none"
    later_system: bool = False
    xhigh: bool = True
    budget_too: bool = False


# Of a model nobody knows: what every server took so far.
UNKNOWN_ANTHROPIC = ModelTraits()
OPENAI = ModelTraits(reasoning="effort")

_CLAUDE = re.compile(r"claude-(?:[a-z]+)-(\d)(?:-(\d))?(?:-\d{8})?\Z")


def anthropic_traits(model: str) -> ModelTraits:
    """Traits of one of Anthropic's models, by its ID.

    Sources, read 2026-11-21: platform.claude.com, "Adaptive thinking" and "Mid-conversation system
    messages"; the model list of LiteLLM 1.106 (supports_sampling_params, supports_adaptive_thinking,
    supports_mid_conversation_system, supports_xhigh_reasoning_effort).
    """
    found = _CLAUDE.match(model)
    if found is None:
        return UNKNOWN_ANTHROPIC
    version = (int(found[1]), int(found[2] or 0))
    if version >= (4, 8):
        return ModelTraits(sampling=False, reasoning="adaptive", later_system=True)
    if version == (4, 7):
        return ModelTraits(sampling=False, reasoning="adaptive")
    if version == (4, 6):
        return ModelTraits(reasoning="adaptive", xhigh=False, budget_too=True)
    return ModelTraits(reasoning="budget") if version >= (4, 0) else UNKNOWN_ANTHROPIC


def effort_of(budget: int | None) -> Literal["low", "medium", "high"]:
    """The word for a number of reasoning tokens. A model that decides by itself gets the middle."""
    if budget is None:
        return "medium"
    return "low" if budget <= 2048 else "medium" if budget <= 8192 else "high"
