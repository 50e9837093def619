"""A frozen language model whose upper blocks get a trained low-rank change. Knows no query, no data and no loop.

The change is added to the outputs of linear layers, so the base may be of any class and quantised in any way (QLoRA).
Where no block below `first_layer` is changed, what those give can be kept and need not be computed again.
Source: LoRA, Hu et al. 2022, equation 3; on a 4-bit base, QLoRA, Dettmers et al. 2023, equation 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from uqchat.engine.adapters import Adapter, LowRank, linear_size
from uqchat.engine.capture import find_blocks
from uqchat.errors import InputError

CLOSE = 1e-3  # largest difference of logits, as a share of the largest logit, that counts as the same forward


@dataclass(frozen=True)
class LoraConfig:
    """Which layers are changed, and how."""

    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Last parts of the names of linear layers."""
    rank: int = 8
    """1 or more."""
    alpha: float = 32.0
    """The change is multiplied by alpha / rank; above 0."""
    dropout: float = 0.1
    """Share of a layer's inputs that the change does not see in training, in [0, 1)."""
    first_layer: int = 0
    """Blocks before this one stay as they are."""

    def __post_init__(self) -> None:
        """Refuse values outside their range. Raises InputError."""
        for name, is_allowed, allowed in (
            ("targets", bool(self.targets), "names of linear layers, such as q_proj"),
            ("rank", self.rank >= 1, "1 or more"),
            ("alpha", self.alpha > 0, "above 0"),
            ("dropout", 0 <= self.dropout < 1, "0 to below 1"),
            ("first_layer", self.first_layer >= 0, "0 or more"),
        ):
            if not is_allowed:
                raise InputError(f"{name} = {getattr(self, name)!r} is not allowed; it must be {allowed}.")


class LoraModel(nn.Module):
    """The base with its change; only the change has parameters here.

    Args:
        base: frozen, in eval mode; it keeps its hooks until `remove`.
        seed: of the first values of the change, which begins as none: b is 0.

    Raises:
        InputError: no linear layer of these names in these blocks; the text gives those there are.
    """

    def __init__(self, base: PreTrainedModel, config: LoraConfig, seed: int = 0) -> None:
        super().__init__()
        self._base = (base,)  # in a tuple, so that it is no part of this module's state
        self.config = config
        self.layers = find_layers(base, config)
        keep_gradients(base)
        sizes = [linear_size(base.get_submodule(layer)) for layer in self.layers]
        generator = torch.Generator().manual_seed(seed)
        bound = [size_in**-0.5 for _, size_in in sizes]  # as torch begins a linear layer, and PEFT its A
        uniform = [torch.rand(config.rank, size[1], generator=generator) * 2 - 1 for size in sizes]
        self.a = nn.ParameterList([nn.Parameter(u * b) for u, b in zip(uniform, bound, strict=True)])
        self.b = nn.ParameterList([nn.Parameter(torch.zeros(size[0], config.rank)) for size in sizes])
        self.to(base.device)
        self._is_on = False
        self._handles = [
            base.get_submodule(layer).register_forward_hook(self._hook(number))
            for number, layer in enumerate(self.layers)
        ]

    @property
    def base(self) -> PreTrainedModel:
        """The frozen model."""
        return self._base[0]

    def remove(self) -> None:
        """Take the hooks off the base."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, number: int) -> Any:
        def add(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not self._is_on:
                return None
            x = args[0].to(self.a[number].dtype)
            x = nn.functional.dropout(x, self.config.dropout, self.training)
            delta = x @ self.a[number].T @ self.b[number].T
            return output + (delta * (self.config.alpha / self.config.rank)).to(output.dtype)

        return add

    def forward(
        self, inputs: Tensor, mask: Tensor, keep: Tensor, is_changed: bool = True, starts_at: int = 0
    ) -> Tensor:
        """Logits, float32, of the positions in `keep`: (B, K, V).

        Args:
            inputs: (B, T) ids or, for a later start, (B, T, D) states that enter the block `starts_at`.
            mask: (B, T) bool, False on the padding, which lies on the left.
            keep: (K,) positions.
            is_changed: whether the change is applied; without it, the base's own logits, without gradients.
        """
        with self._switched(is_changed), torch.set_grad_enabled(is_changed and torch.is_grad_enabled()):
            return run_from(self.base, starts_at, inputs, mask, keep)

    @contextmanager
    def _switched(self, is_on: bool) -> Iterator[None]:
        before, self._is_on = self._is_on, is_on
        try:
            yield
        finally:
            self._is_on = before

    def adapter(self, name: str) -> Adapter:
        """The change as the engine takes it."""
        scale = self.config.alpha / self.config.rank
        factors = zip(self.layers, self.a, self.b, strict=True)
        return Adapter(
            name, {n: LowRank(a.detach().cpu().clone(), b.detach().cpu().clone(), scale) for n, a, b in factors}
        )


def find_layers(base: PreTrainedModel, config: LoraConfig) -> list[str]:
    """Names of the linear layers to be changed, in the model's order. Raises InputError when there are none."""
    blocks = find_blocks(base)
    late = {id(m) for block in blocks[config.first_layer :] for m in block.modules()} if blocks else None
    linear = [(name, module) for name, module in base.named_modules() if linear_size(module)]
    found = [
        name
        for name, module in linear
        if name.rsplit(".", 1)[-1] in config.targets and (late is None or id(module) in late)
    ]
    if not found:
        there = sorted({name.rsplit(".", 1)[-1] for name, _ in linear})
        raise InputError(
            f"No linear layer named {' or '.join(config.targets)} from block {config.first_layer} on"
            f" ({len(blocks)} blocks). Linear layers of this model: {', '.join(there)}."
        )
    return found


def keep_gradients(base: nn.Module) -> None:
    """4-bit layers pack their weights on a CPU when they run in eval mode, for a kernel that gives no gradients."""
    for module in base.modules():
        if type(module).__name__ == "Linear4bit":
            module.state_dict()  # unpacks the weights
            module.train()  # and this keeps them so


def run_from(base: PreTrainedModel, first: int, inputs: Tensor, mask: Tensor, keep: Tensor) -> Tensor:
    """Logits of some positions, float32; blocks before `first` are passed over, see `LoraModel.forward`."""
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    given = {"inputs_embeds": inputs.to(base.dtype)} if inputs.is_floating_point() else {"input_ids": inputs}
    with _blocks_from(base, first):
        logits = base(
            **given, attention_mask=mask.long(), position_ids=positions, logits_to_keep=keep, use_cache=False
        ).logits
    return logits.float()


@contextmanager
def _blocks_from(base: PreTrainedModel, first: int) -> Iterator[None]:
    """The decoder without its first blocks."""
    if first == 0:
        yield
        return
    decoder, blocks = base.get_decoder(), find_blocks(base)
    name = next(name for name, module in decoder.named_children() if list(module.children())[:1] == blocks[:1])
    whole = getattr(decoder, name)
    setattr(decoder, name, nn.ModuleList(blocks[first:]))
    try:
        yield
    finally:
        setattr(decoder, name, whole)


@torch.no_grad()
def states_at(base: PreTrainedModel, layer: int, ids: Tensor, mask: Tensor) -> Tensor:
    """(B, T, D): what enters the block `layer`; those after it are not computed."""
    caught: list[Tensor] = []

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append((args[0] if args else kwargs["hidden_states"]).detach())
        raise _CaughtError

    handle = find_blocks(base)[layer].register_forward_pre_hook(catch, with_kwargs=True)
    try:
        run_from(base, 0, ids, mask, torch.tensor([ids.shape[1] - 1], device=ids.device))
    except _CaughtError:
        pass
    finally:
        handle.remove()
    return caught[0]


class _CaughtError(Exception):
    """The state is there; the rest of the forward is not needed."""


@torch.no_grad()
def can_start_at(base: PreTrainedModel, layer: int) -> bool:
    """Whether a forward from this block on gives the logits of a whole one: tried, since decoders differ."""
    if not 0 < layer < len(find_blocks(base)):
        return False
    ids = torch.arange(40, device=base.device).remainder(base.config.get_text_config().vocab_size)[None].repeat(2, 1)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, :7] = False
    keep = torch.arange(8, 40, device=base.device)
    whole = run_from(base, 0, ids, mask, keep)
    try:
        late = run_from(base, layer, states_at(base, layer, ids, mask), mask, keep)
    except Exception:  # noqa: BLE001  a decoder of another build may refuse in any way; then nothing is skipped
        return False
    return bool((late - whole).abs().max() <= CLOSE * whole.abs().max())


def pad_left(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of ids (T,) or states (T, D) as one tensor, and its mask (B, T)."""
    width = max(map(len, rows))
    padded = rows[0].new_zeros((len(rows), width, *rows[0].shape[1:]))
    mask = torch.zeros((len(rows), width), dtype=torch.bool, device=rows[0].device)
    for i, row in enumerate(rows):
        padded[i, width - len(row) :], mask[i, width - len(row) :] = row, True
    return padded, mask
