"""A frozen language model with several low-rank changes, one for each row of a batch. Knows no data and no loop.

The changes are added to the outputs of linear layers, so the base may be quantised in any way (QLoRA). Where several
are trained at once, a row's gradient reaches its own change only.
Source: LoRA, Hu et al. 2022, equation 3; many adapters in one forward: Wen & Chaudhuri 2023 (arXiv 2312.05677), eq. 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trainers.lora import keep_gradients, run_from
from uqchat.engine.adapters import LowRank
from uqchat.engine.capture import find_blocks
from uqchat.errors import InputError


class RowLora(nn.Module):
    """The base with its changes; only these have parameters here.

    Args:
        base: frozen, in eval mode; it keeps its hooks until `remove`.
        starts: of each change, what it begins as by layer; all change the same layers by the same rank.
        scale: b is stored divided by it, so that it moves scale times as fast: alpha / rank of LoRA.
        dropout: share of a layer's inputs that the change does not see in training, in [0, 1).

    Raises:
        InputError: no change, or a scale or dropout outside its range.
    """

    def __init__(
        self, base: PreTrainedModel, starts: Sequence[dict[str, LowRank]], scale: float = 1.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if not starts or scale <= 0 or not 0 <= dropout < 1:
            raise InputError(
                f"Changes are needed, a scale above 0 and a dropout from 0 to below 1; got {scale}, {dropout}."
            )
        self._base = (base,)  # in a tuple, so that it is no part of this module's state
        self.layers, self.scale, self.dropout = tuple(starts[0]), scale, dropout
        keep_gradients(base)
        self.a = nn.ParameterList([torch.stack([start[n].a.float() for start in starts]) for n in self.layers])
        self.b = nn.ParameterList(
            [torch.stack([start[n].b.float() * (start[n].scale / scale) for start in starts]) for n in self.layers]
        )
        self.to(base.device)
        self._members: Tensor | None = None
        self._handles = [
            base.get_submodule(layer).register_forward_hook(self._hook(number))
            for number, layer in enumerate(self.layers)
        ]

    @property
    def base(self) -> PreTrainedModel:
        """The frozen model."""
        return self._base[0]

    @property
    def first_block(self) -> int:
        """The first block that is changed; those before it give the same to all rows."""
        names = {id(module): name for name, module in self.base.named_modules()}
        blocks = [names[id(block)] for block in find_blocks(self.base)]
        own = [i for i, block in enumerate(blocks) if any(layer.startswith(f"{block}.") for layer in self.layers)]
        return min(own, default=0)

    def remove(self) -> None:
        """Take the hooks off the base."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, number: int) -> Any:
        def add(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if self._members is None:
                return None
            a, b = self.a[number][self._members], self.b[number][self._members]  # (B, r, in), (B, out, r)
            x = nn.functional.dropout(args[0].to(a.dtype), self.dropout, self.training)
            return output + (torch.bmm(torch.bmm(x, a.mT), b.mT) * self.scale).to(output.dtype)

        return add

    def forward(self, inputs: Tensor, mask: Tensor, keep: Tensor, members: Tensor, starts_at: int = 0) -> Tensor:
        """Logits, float32, of the positions in `keep`: (B, K, V).

        Args:
            inputs: (B, T) ids or, for a later start, (B, T, D) states that enter the block `starts_at`.
            mask: (B, T) bool, False on the padding, which lies on the left.
            keep: (K,) positions. members: (B,) which change each row has.
        """
        with self._switched(members):
            return run_from(self.base, starts_at, inputs, mask, keep)

    @contextmanager
    def _switched(self, members: Tensor) -> Iterator[None]:
        before, self._members = self._members, members
        try:
            yield
        finally:
            self._members = before

    def changes(self) -> tuple[dict[str, LowRank], ...]:
        """What was learned, of each by layer, with scale 1."""
        count = len(self.a[0])
        return tuple(
            {
                name: LowRank(a[i].detach().cpu().clone(), (b[i] * self.scale).detach().cpu().clone())
                for name, a, b in zip(self.layers, self.a, self.b, strict=True)
            }
            for i in range(count)
        )
