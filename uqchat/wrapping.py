"""One's own model with risk on every token: `uqchat.wrap(model, "vote")` is a module that gives (logits, risk).

It wraps any causal language model of transformers (or another module whose output has `.logits`) without copying it,
for one's own loop and loss. Knows no engine loop, no chat and no file. Numbers equal those of the engine's estimators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from uqchat.engine.adapters import Dense, InputScale, LowRank
from uqchat.engine.voters import BLOCK, mean_logits, mutual_information
from uqchat.errors import InputError
from uqchat.estimators.dropout_files import DropoutSettings, masked_inputs
from uqchat.estimators.vote_noise import noise_voters
from uqchat.estimators.vote_settings import VoteSettings
from uqchat.wrapping_sculpt import wrap_sculpt

Changes = Mapping[str, LowRank | Dense | InputScale]


class WrappedEnsemble(nn.Module):
    """A model and voters that differ from it in some layers.

    The call takes what the model takes, and `return_risk`:

    - as it is: logits (B, T, V), the model's own or log of the voters' mean distribution, see `prediction`;
    - `return_risk=True`: (logits, risk), risk (B, T) in [0, 1]: mutual information of next token and voter / ln n;
    - `training=True`: row b of the batch is seen by voter b mod n alone; logits (B, T, V) of those, for any loss.

    Args:
        model: left as it is; its parameters stop wanting gradients, those of the voters want them.
        voters: what each changes, by layer.
        prediction: "base" or "mean".
    """

    def __init__(self, model: nn.Module, voters: Sequence[Changes], prediction: str = "base") -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.n_voters, self.prediction = len(voters), prediction
        self.layers = {layer: f"layer{number}" for number, layer in enumerate(voters[0])}
        self.changes = nn.ModuleDict(
            {key: RowChange([voter[layer] for voter in voters]) for layer, key in self.layers.items()}
        )
        weights = next(model.parameters())
        self.changes.to(weights.device)

    def forward(
        self, *args: Any, return_risk: bool = False, training: bool = False, **kwargs: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        """See the class.

        Raises:
            InputError: `training` with a batch that the number of voters does not divide, or with `return_risk`.
        """
        if training:
            if return_risk:
                raise InputError("In training each row is seen by one voter only, so there is no risk; leave one out.")
            return self._seen_by_one(args, kwargs)
        rows = self.n_voters + 1
        args, kwargs = _mapped(args, kwargs, lambda tensor: tensor.repeat_interleave(rows, dim=0))
        voters = torch.arange(-1, self.n_voters).repeat(_batch_of(args, kwargs) // rows)  # -1: the model as it is
        logits = self._run(voters, args, kwargs).float().unflatten(0, (-1, rows)).transpose(0, 1)  # (rows, B, T, V)
        shown = logits[0] if self.prediction == "base" else mean_logits(logits[1:])
        return (shown, self.risk_of(logits[1:])) if return_risk else shown

    def risk_of(self, logits: Tensor) -> Tensor:
        """(n, B, T, V) -> (B, T); blocks of positions, so that no more distributions exist at a time."""
        if self.n_voters == 1:
            return logits.new_zeros(logits.shape[1:3])
        parts = [mutual_information(block.softmax(dim=-1)) for block in logits.split(BLOCK, dim=2)]
        return torch.cat(parts, dim=1) / math.log(self.n_voters)

    def voters(self) -> tuple[dict[str, LowRank | Dense | InputScale], ...]:
        """What each voter changes now, by layer, detached: what `write_vote` takes where it is of low rank."""
        by_layer = {layer: self.changes[key].members() for layer, key in self.layers.items()}
        return tuple({layer: members[i] for layer, members in by_layer.items()} for i in range(self.n_voters))

    def _seen_by_one(self, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        size = _batch_of(args, kwargs)
        if size % self.n_voters:
            raise InputError(
                f"A training batch is shared out among the {self.n_voters} voters, so its size must be a multiple of"
                f" {self.n_voters}; got {size} rows."
            )
        return self._run(torch.arange(size) % self.n_voters, args, kwargs)

    def _run(self, voters: Tensor, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """Logits where row b is the model with the changes of voters[b]."""
        with self._hooked(voters):
            out = self.model(*args, **{"use_cache": False, **kwargs})
        return out.logits if hasattr(out, "logits") else out

    @contextmanager
    def _hooked(self, voters: Tensor) -> Iterator[None]:
        handles = []
        try:
            for layer, key in self.layers.items():
                handles += self.changes[key].hook(self.model.get_submodule(layer), voters)
            yield
        finally:
            for handle in handles:
                handle.remove()


class RowChange(nn.Module):
    """What the voters change in one layer, all in the same way: trainable factors or weights, or fixed masks."""

    def __init__(self, members: Sequence[LowRank | Dense | InputScale]) -> None:
        super().__init__()
        first = members[0]
        self.a = self.b = self.weight = None
        if isinstance(first, LowRank):
            self.a = nn.Parameter(torch.stack([one.a.float() for one in members]))  # (n, r, in)
            self.b = nn.Parameter(torch.stack([one.b.float() * one.scale for one in members]))  # (n, out, r)
        elif isinstance(first, Dense):
            self.weight = nn.Parameter(torch.stack([one.weight.float() for one in members]))  # (n, out, in)
        else:
            self.register_buffer("factor", torch.stack([one.factor.float() for one in members]))  # (n, in)

    def members(self) -> list[LowRank | Dense | InputScale]:
        """Each voter's change, detached."""
        if self.a is not None:
            return [LowRank(a.detach(), b.detach()) for a, b in zip(self.a, self.b, strict=True)]
        if self.weight is not None:
            return [Dense(weight.detach()) for weight in self.weight]
        return [InputScale(factor) for factor in self.factor]

    def hook(self, layer: nn.Module, voters: Tensor) -> list[Any]:
        """Change this layer's rows until the handles are removed; voter -1 changes nothing."""
        voters = voters.to(next(iter(self.state_dict().values())).device)
        is_voter = (voters >= 0)[:, None, None]
        index = voters.clamp_min(0)
        if self.a is None and self.weight is None:
            factors = torch.where(is_voter, self.factor[index][:, None], 1.0)
            return [layer.register_forward_pre_hook(lambda m, args: (args[0] * factors.to(args[0]), *args[1:]))]

        def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = args[0].float()
            if self.weight is None:
                change = torch.bmm(torch.bmm(x, self.a[index].mT), self.b[index].mT)
            else:
                change = torch.bmm(x, self.weight[index].mT)
            return output + torch.where(is_voter, change, 0.0).to(output)

        return [layer.register_forward_hook(add)]


def _mapped(args: tuple, kwargs: Mapping[str, Any], change: Callable[[Tensor], Tensor]) -> tuple[tuple, dict[str, Any]]:
    """Every tensor of a batch changed, all else as it is."""
    size = _batch_of(args, kwargs)

    def one(value: Any) -> Any:
        return change(value) if isinstance(value, Tensor) and value.dim() and len(value) == size else value

    return tuple(map(one, args)), {key: one(value) for key, value in kwargs.items()}


def _batch_of(args: tuple, kwargs: Mapping[str, Any]) -> int:
    """Rows of the batch. Raises InputError when no tensor says."""
    first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim()), None)
    if first is None:
        raise InputError("The wrapped model must be given a tensor, such as input_ids of shape (B, T).")
    return len(first)


def _vote(model: nn.Module, options: dict[str, Any]) -> nn.Module:
    settings = VoteSettings(**options)
    return WrappedEnsemble(model, noise_voters(model, settings), settings.prediction)


def _dropout(model: nn.Module, options: dict[str, Any]) -> nn.Module:
    return WrappedEnsemble(model, masked_inputs(model, DropoutSettings(**options)))


def _sculpt(model: nn.Module, options: dict[str, Any]) -> nn.Module:
    return wrap_sculpt(model, **options)


KINDS: dict[str, Callable[[nn.Module, dict[str, Any]], nn.Module]] = {
    "vote": _vote,
    "dropout": _dropout,
    "sculpt": _sculpt,
}
"""What a model can be wrapped in; each takes the model and the options."""


def wrap(model: nn.Module, kind: str, **options: Any) -> nn.Module:
    """A model whose call takes `return_risk=True` and then gives (logits (B, T, V), risk (B, T)).

    Args:
        model: a causal language model of transformers, or what `uqchat.load` returns.
        kind: "vote", with the fields of `VoteSettings` as options; "dropout", with those of `DropoutSettings`; or
            "sculpt", with `folder`, that of a head trained by `python -m trainers sculpt`, and `allow_mismatch`.

    Raises:
        InputError: an unknown kind or option, a value that is not allowed, or an expression that matches no layer.
        ArtifactError: the folder cannot be used, or its head was trained for another model.
    """
    if kind not in KINDS:
        raise InputError(f"There is no wrapper {str(kind)[:40]!r}. Known: {', '.join(KINDS)}.")
    if not isinstance(model, nn.Module) and isinstance(getattr(model, "model", None), nn.Module):
        model = model.model
    try:
        return KINDS[kind](model, options)
    except TypeError as error:
        raise InputError(f"wrap(model, {kind!r}) cannot take these options: {error}") from error
