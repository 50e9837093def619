"""Well-known chat models and the published uncertainty heads for them. Any other name works just as well."""

from __future__ import annotations

from dataclasses import dataclass

GATED = "gated: accept the licence on huggingface.co and give a token"


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """One suggestion; `size_gb` is the size of its weights in 10^9 bytes: to download, or (embedded) in the cache."""

    name: str
    label: str
    size_gb: float
    license: str
    note: str = ""


def known_models() -> list[ModelChoice]:
    """The embedded model first, then others from small to large."""
    return [
        ModelChoice("embedded", "SmolLM2 135M (embedded)", 0.54, "apache-2.0", "needs no network once installed"),
        ModelChoice("HuggingFaceTB/SmolLM2-360M-Instruct", "SmolLM2 360M", 0.72, "apache-2.0"),
        ModelChoice("Qwen/Qwen2.5-0.5B-Instruct", "Qwen2.5 0.5B", 0.99, "apache-2.0"),
        ModelChoice("Qwen/Qwen3-0.6B", "Qwen3 0.6B", 1.5, "apache-2.0", "reasons before it answers"),
        ModelChoice("meta-llama/Llama-3.2-1B-Instruct", "Llama 3.2 1B", 2.5, "llama3.2", GATED),
        ModelChoice("Qwen/Qwen2.5-1.5B-Instruct", "Qwen2.5 1.5B", 3.1, "apache-2.0"),
        ModelChoice("HuggingFaceTB/SmolLM2-1.7B-Instruct", "SmolLM2 1.7B", 3.4, "apache-2.0"),
        ModelChoice("google/gemma-2-2b-it", "Gemma 2 2B", 5.2, "gemma", GATED),
        ModelChoice("meta-llama/Llama-3.2-3B-Instruct", "Llama 3.2 3B", 6.4, "llama3.2", GATED),
        ModelChoice("Qwen/Qwen3-4B", "Qwen3 4B", 8.0, "apache-2.0", "reasons before it answers"),
        ModelChoice("mistralai/Mistral-7B-Instruct-v0.3", "Mistral 7B v0.3", 14.5, "apache-2.0", GATED),
        ModelChoice("Qwen/Qwen2.5-7B-Instruct", "Qwen2.5 7B", 15.2, "apache-2.0"),
        ModelChoice("meta-llama/Llama-3.1-8B-Instruct", "Llama 3.1 8B", 16.1, "llama3.1", GATED),
    ]


@dataclass(frozen=True, slots=True)
class HeadChoice:
    """A published uncertainty head; `base` is the model it was trained on, `size_mb` of its weights in 10^6 bytes."""

    name: str
    base: str
    level: str
    size_mb: int | None = None
    note: str = ""

    def fits(self, model: str | None) -> bool:
        """Whether a model of this name is the one it was trained on, as far as names can tell."""
        return bool(model) and _last(model) == _last(self.base)


def known_heads() -> list[HeadChoice]:
    """Heads of the organisation llm-uncertainty-head on the Hub, by base model. Their licence is not stated there."""
    mistral, llama = "mistralai/Mistral-7B-Instruct-v0.2", "meta-llama/Llama-3.1-8B-Instruct"
    gemma, early = "google/gemma-2-9b-it", "of November 2024; its configuration may lack what is read today"
    return [
        HeadChoice("llm-uncertainty-head/uhead_claim_Mistral-7B-Instruct-v0.2", mistral, "claim"),
        HeadChoice("llm-uncertainty-head/uhead_claim_att_exp3_Mistral-7B-Instruct-v0.2", mistral, "claim", 42),
        HeadChoice("llm-uncertainty-head/uhead_Mistral-7B-Instruct-v0.2", mistral, "token"),
        HeadChoice("llm-uncertainty-head/uhead_claim_Llama-3.1-8B-Instruct", llama, "claim", 83),
        HeadChoice("llm-uncertainty-head/uqhead_Llama-3.1-8B-Instruct", llama, "token", note=early),
        HeadChoice("llm-uncertainty-head/uhead_gemma-2-9b-it", gemma, "token"),
        HeadChoice("llm-uncertainty-head/uhead_claim_exp2_gemma-2-9b-it", gemma, "claim"),
        HeadChoice("llm-uncertainty-head/saplma_gemma-2-9b-it", gemma, "token"),
    ]


def _last(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].lower()
