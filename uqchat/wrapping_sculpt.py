"""One's own model with a trained sculpt head beside it: `uqchat.wrap(model, "sculpt", folder=...)`. Trains nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uqchat.errors import InputError
from uqchat.estimators.sculpt import Sculpt

BLOCK = 64  # positions whose shortlists and draws exist at a time
UNTRAINED = (
    "Sculpt needs a trained head, and there is none to start from. Train one for this model with `python -m trainers"
    ' sculpt`, then give the folder that it names: wrap(model, "sculpt", folder="runs/.../artifact").'
)


class WrappedSculpt(nn.Module):
    """A model and the head that predicts the variance of its logits; one forward gives both.

    The call takes what the model takes, and `return_risk`:

    - as it is: logits (B, T, V), the model's own;
    - `return_risk=True`: (logits, risk), risk (B, T) in [0, 1]: 1 - exp(-score) of the estimator `sculpt`, so of what
      position t predicts. A head whose measure is sigma judges a token: the one that follows in `input_ids`, and the
      likeliest one at the last position.

    Args:
        model: left as it is. estimator: of that model.
    """

    def __init__(self, model: nn.Module, estimator: Sculpt) -> None:
        super().__init__()
        self.model, self.head, self.estimator = model, estimator.head, estimator

    def forward(
        self, *args: Any, return_risk: bool = False, training: bool = False, **kwargs: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        """See the class.

        Raises:
            InputError: `training`, since the head is trained elsewhere; no `input_ids` where the measure is sigma.
        """
        if training:
            raise InputError("A wrapped sculpt head does not learn here; `python -m trainers sculpt` trains one.")
        out = self.model(*args, **{"use_cache": False, **kwargs, "output_hidden_states": return_risk})
        if not return_risk:
            return out.logits
        states = torch.stack([out.hidden_states[layer] for layer in self.estimator.config.layers], dim=2)
        judged = out.logits.argmax(dim=-1)
        if self.estimator.config.measure == "sigma":
            judged = torch.cat([_ids_of(args, kwargs)[:, 1:].to(judged), judged[:, -1:]], dim=1)
        return out.logits, self.risk_of(states, judged)

    @torch.no_grad()
    def risk_of(self, states: Tensor, token_ids: Tensor) -> Tensor:
        """Hidden states (B, T, layers, D) and the tokens that are judged (B, T) -> (B, T), float32."""
        blocks = zip(states.flatten(0, 1).split(BLOCK), token_ids.flatten().split(BLOCK), strict=True)
        raw = torch.cat([self.estimator.raw_scores(*block) for block in blocks])
        return -torch.expm1(-raw).view(token_ids.shape)


def _ids_of(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    ids = kwargs.get("input_ids", args[0] if args else None)
    if not isinstance(ids, Tensor):
        raise InputError("This head's risk is sigma of the token that follows, so the call needs input_ids (B, T).")
    return ids


def wrap_sculpt(model: nn.Module, folder: str | Path | None = None, allow_mismatch: bool = False) -> WrappedSculpt:
    """The model with the head of a folder that `python -m trainers sculpt` wrote.

    Raises:
        InputError: no folder, so no trained head; a model whose logits do not come straight from an output layer.
        ArtifactError: the folder holds no such head, or one for another model, unless `allow_mismatch`.
    """
    if folder is None:
        raise InputError(UNTRAINED)
    return WrappedSculpt(model, Sculpt.from_folder(Path(folder), model, "sculpt", allow_mismatch=allow_mismatch))
