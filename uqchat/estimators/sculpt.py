"""Sculpt: a head on the last layers predicts how uncertain each logit is. Knows no training.

One pass, no further row: the head reads the states that predicted a token. Source: Kendall & Gal 2017 (arXiv
1703.04977), section 3.3; the wrapper of the same name in capsa fits such a head beside a frozen model.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

import torch

from uqchat.artifact_files import CONFIG, card_text, read_config_json, read_tensors, write_artifact
from uqchat.errors import InputError
from uqchat.estimators.base import Estimator, stored_risk
from uqchat.heads.logit_variance import LogitVariance, draw, expected_entropy, shortlist
from uqchat.origin import ArtifactError, Origin, check_origin, read_origin
from uqchat.types import Risk, ScoredToken, Signals, TokenStep

FORMAT = "uqchat-sculpt"
Measure = Literal["expected_entropy", "sigma"]
UNITS = {"expected_entropy": "nats", "sigma": "standard deviation of the chosen logit"}


@dataclass(frozen=True, slots=True)
class SculptConfig:
    """What the head reads and what is made of it.

    Raises:
        InputError: a value outside what is allowed, on construction.
    """

    layers: tuple[int, ...]
    """Hidden states, 0 to L; the last one must be L, from which the logits come."""
    width: int = 64
    rank: int = 16
    shortlist: int = 256
    """Tokens whose logits have a variance: the likeliest ones."""
    samples: int = 16
    """Draws for the expected entropy."""
    measure: Measure = "expected_entropy"
    """The token's risk: mean entropy of the drawn distributions, or sigma of the chosen token's logit."""

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("width", "rank", "shortlist", "samples"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{name} of sculpt must be a whole number, 1 or more; got {value!r}.")
        if not self.layers or not all(isinstance(layer, int) and layer >= 0 for layer in self.layers):
            raise InputError(f"layers of sculpt must be hidden states such as 29, 30; got {self.layers!r}.")
        if self.measure not in get_args(Measure):
            raise InputError(f"measure of sculpt must be {' or '.join(get_args(Measure))}; got {self.measure!r}.")


class Sculpt(Estimator):
    """Predicted aleatoric uncertainty of every token."""

    name = "sculpt"
    label = "Sculpt (predicted variance)"
    level = "token"
    needs = Signals()
    trainable = True
    unit = UNITS["expected_entropy"]
    value_map = "1 - exp(-score)"
    format: ClassVar[str | None] = FORMAT

    def __init__(
        self, config: SculptConfig, head: LogitVariance, model: Any, info: Origin, name: str = "sculpt"
    ) -> None:
        """model: a transformers model, whose output layer turns states into logits."""
        self.config, self.head, self.origin, self.name = config, head.eval(), info, name
        self.needs = Signals(hidden_layers=tuple(sorted(config.layers)))
        self.unit = UNITS[config.measure]
        self._output = output_layer(model)
        generator = torch.Generator().manual_seed(0)  # the same draws for every token, so that scores repeat
        self._noise = torch.randn(config.samples, 1, config.shortlist, generator=generator)

    @classmethod
    def from_folder(cls, folder: Path, model: Any, name: str, *, allow_mismatch: bool = False) -> Self:
        """See `Estimator.from_folder`; `model` may be a transformers model too."""
        folder = Path(folder)
        raw = read_config_json(folder, FORMAT, tuple(field.name for field in fields(SculptConfig)))
        info = read_origin(raw["info"])
        if not allow_mismatch:
            check_origin(info, model, "head")
        model = model if isinstance(model, torch.nn.Module) else model.model
        base = model.config.get_text_config()
        try:
            config = SculptConfig(**{f.name: raw[f.name] for f in fields(SculptConfig)} | {"layers": (*raw["layers"],)})
            head = LogitVariance(base.hidden_size, len(config.layers), config.width, config.rank)
            head.load_state_dict({key: tensor.float() for key, tensor in read_tensors(folder).items()})
        except (KeyError, TypeError, InputError) as error:
            raise ArtifactError(f"{CONFIG} in {folder} cannot be used: {error}") from error
        except RuntimeError as error:
            raise ArtifactError(f"The weights in {folder} do not fit: {' '.join(str(error).split())[:300]}") from error
        if config.layers[-1] != base.num_hidden_layers:
            raise ArtifactError(
                f"The head reads its logits off layer {config.layers[-1]}; this model's last is"
                f" {base.num_hidden_layers}."
            )
        return cls(config, head.requires_grad_(False).to(model.device), model, info, name)

    def save(self, folder: Path) -> None:
        """config.json, model.safetensors in half precision, and a card."""
        tensors = {key: tensor.half() for key, tensor in self.head.state_dict().items()}
        write_artifact(Path(folder), FORMAT, asdict(self.config), tensors, self.origin, self._card())

    def _card(self) -> str:
        config = self.config
        facts = {
            "Type": "heteroscedastic classification (Kendall & Gal 2017): a variance for each logit, base frozen",
            "Reads": f"hidden states {', '.join(map(str, config.layers))}",
            "Head": f"{config.width} hidden units, rank {config.rank}, the {config.shortlist} likeliest tokens",
            "Token risk": "mean entropy of the drawn distributions, nats"
            if config.measure == "expected_entropy"
            else "sigma of the chosen token's logit",
            "Parameters": f"{sum(p.numel() for p in self.head.parameters()):,}",
        }
        use = 'Use it with `model.answer(question, estimators=["sculpt"])`, or give this folder in place of the name.'
        return card_text("Sculpt: how uncertain is each logit?", facts, self.origin, use)

    @torch.inference_mode()
    def score_token(self, step: TokenStep | ScoredToken, state: None) -> dict[int, Risk]:
        """Risk of the newest token."""
        stored = stored_risk(step, self.name)
        if stored is not None:
            return stored
        states = torch.stack([step.signals.hidden[layer] for layer in self.config.layers])[None]
        raw = self.raw_scores(states, torch.tensor([step.token_id], device=states.device)).item()
        return {step.index: Risk(value=-math.expm1(-raw), raw=raw)}

    def raw_scores(self, states: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        """Scores of tokens by the measure of the configuration, (N,), float32, in its unit.

        Args:
            states: (N, layers, D), of the positions that predicted them. token_ids: (N,), which only sigma looks at.
        """
        weight = self._output.weight
        if self.config.measure == "sigma":
            return (0.5 * self.head(states, weight[token_ids][:, None])).exp()[:, 0]
        best = shortlist(self._output(states[:, -1].to(weight.dtype)), self.config.shortlist)
        log_variance = self.head(states, weight[best.ids])
        noise = self._noise[..., : best.ids.shape[1]].to(log_variance.device)
        return expected_entropy(draw(best.logits, log_variance, noise))


def output_layer(model: Any) -> torch.nn.Module:
    """The linear layer that gives a transformers model's logits. Raises InputError where it has none."""
    found = model.get_output_embeddings()
    if found is None or getattr(model.config.get_text_config(), "final_logit_softcapping", None):
        raise InputError("Sculpt needs a model whose logits come straight from an output layer; this one's do not.")
    return found
