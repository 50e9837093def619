"""Hidden states and attention windows of one forward, for the rows that are wanted. Knows no estimator.

Nothing is installed while nobody asks. Hooks keep the wanted rows of the wanted layers only, so a long prompt leaves
no T x D states of all layers behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from uqchat.engine.attention import NAME
from uqchat.engine.window import AttentionWindow
from uqchat.types import Signals, StepSignals


@dataclass
class Capture:
    """What one forward is to keep: the last `rows` positions of every sequence in it."""

    signals: Signals
    rows: int
    positions: torch.Tensor | None = None  # (B, R) key index of those rows; None: they are the last keys
    prompt_lengths: tuple[int, ...] = ()  # of each sequence, where attention on the prompt is wanted
    hidden: dict[int, torch.Tensor] = field(default_factory=dict)  # layer -> (B, R, D)
    input_ids: torch.Tensor | None = None  # (B, R)
    sequences: dict[int, int] = field(default_factory=dict)  # where a sequence is in here, if not at its own number
    window: AttentionWindow | None = None

    def only(self, sequences: slice | torch.Tensor, count: int) -> None:
        """Of `count` sequences only these will be put in."""
        kept = torch.arange(count)[sequences].tolist()
        self.sequences = {sequence: at for at, sequence in enumerate(kept)}
        self.positions = None if self.positions is None else self.positions[sequences]
        self.prompt_lengths = tuple(self.prompt_lengths[i] for i in kept) if self.prompt_lengths else ()

    def at(self, sequence: int, row: int | slice, wanted: Signals) -> StepSignals:
        """The part of it that one request asked for, copied so that no larger tensor is kept alive."""
        sequence = self.sequences.get(sequence, sequence)
        hidden = {layer: self.hidden[layer][sequence, row].clone() for layer in wanted.hidden_layers}
        attention, on_prompt, layers = None, None, ()
        if wanted.has_attention and self.window is not None:
            recorded = self.window.recorded
            layers = tuple(recorded if wanted.attention_layers is None else wanted.attention_layers)
            chosen = slice(None) if layers == tuple(recorded) else [recorded.index(layer) for layer in layers]
            if wanted.attention_lags:
                weights = self.window.weights()[:, sequence, :, row, : wanted.attention_lags]
                attention = _rows_first(weights[chosen], row)  # ([R,] layers, H, lags)
            if wanted.prompt_attention:
                on_prompt = _rows_first(self.window.on_prompt()[:, sequence, :, row][chosen], row)  # ([R,] layers, H)
        ids = self.input_ids[sequence, row].clone() if wanted.input_ids else None
        return StepSignals(hidden, attention, layers, prompt_attention=on_prompt, input_ids=ids)


def _rows_first(stacked: torch.Tensor, row: int | slice) -> torch.Tensor:
    """A copy, rows before layers where there are several."""
    return (stacked if isinstance(row, int) else stacked.movedim(2, 0)).clone(memory_format=torch.contiguous_format)


def available_signals(model: PreTrainedModel) -> tuple[tuple[int, ...], bool]:
    """Hidden layers that can be read, and whether attention windows can."""
    config = model.config.get_text_config()
    layers = find_blocks(model)
    softcap = getattr(config, "attn_logit_softcapping", None)
    is_plain = softcap is None and hasattr(config, "num_attention_heads") and config._attn_implementation == "sdpa"
    has_attention = is_plain and getattr(model, "_supports_attention_backend", False)
    return tuple(range(len(layers) + 1)) if layers else (), bool(has_attention)


def find_blocks(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The decoder's blocks, in order; empty when the model keeps them somewhere unknown."""
    decoder = model.get_decoder()
    for name in ("layers", "h", "blocks"):
        found = getattr(decoder, name, None)
        if isinstance(found, torch.nn.ModuleList) and len(found) == model.config.get_text_config().num_hidden_layers:
            return list(found)
    return []


@contextmanager
def capturing(model: PreTrainedModel, capture: Capture | None, is_masked: bool = False) -> Iterator[dict[str, Any]]:
    """Install what the capture needs around one forward; gives the extra arguments of that forward.

    The model's own attention setting is back in place afterwards, whatever happens.

    Args:
        is_masked: several queries with a mask, which our attention function computes without repeating keys.
    """
    is_ours = is_masked and getattr(model, "_supports_attention_backend", False)
    if capture is None and not is_ours:
        yield {}
        return
    handles = _hook_hidden(model, capture) if capture else []
    config = model.config.get_text_config()
    before = config._attn_implementation
    extra: dict[str, Any] = {}
    if is_ours:
        config._attn_implementation_internal = NAME
    if capture and capture.signals.has_attention:
        extra["attention_window"] = capture.window = new_window(model, capture)
        config._attn_implementation_internal = NAME
    try:
        yield extra
    finally:
        config._attn_implementation_internal = before
        for handle in handles:
            handle.remove()


def new_window(model: PreTrainedModel, capture: Capture) -> AttentionWindow | None:
    """An empty record of what the capture wants of a forward's attention; None when it wants nothing."""
    signals = capture.signals
    if not signals.has_attention:
        return None
    layers = None if signals.attention_layers is None else frozenset(signals.attention_layers)
    window = AttentionWindow(signals.attention_lags, capture.rows, capture.positions, layers)
    if signals.prompt_attention:
        window.prompt_lengths = torch.tensor(capture.prompt_lengths, device=model.device)
    return window


def _hook_hidden(model: PreTrainedModel, capture: Capture) -> list[Any]:
    blocks = find_blocks(model)

    def keep(layer: int, states: torch.Tensor) -> None:
        capture.hidden[layer] = states[:, -capture.rows :].detach()

    def keep_ids(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        capture.input_ids = args[0][:, -capture.rows :]

    def before_block(layer: int) -> Any:
        return lambda module, args, kwargs: keep(layer, args[0] if args else kwargs["hidden_states"])

    handles = []
    for layer in capture.signals.hidden_layers:
        if layer < len(blocks):
            handles.append(blocks[layer].register_forward_pre_hook(before_block(layer), with_kwargs=True))
        else:
            hook = lambda module, args, output: keep(len(blocks), output[0])  # noqa: E731
            handles.append(model.get_decoder().register_forward_hook(hook))
    if capture.signals.input_ids:
        handles.append(model.get_input_embeddings().register_forward_pre_hook(keep_ids))
    return handles


def join(parts: Sequence[StepSignals]) -> StepSignals:
    """A prompt's signals, read chunk by chunk, as one."""
    hidden = {layer: torch.cat([part.hidden[layer] for part in parts]) for layer in parts[0].hidden}
    attention, on_prompt, ids = (
        None if getattr(parts[0], name) is None else torch.cat([getattr(part, name) for part in parts])
        for name in ("attention", "prompt_attention", "input_ids")
    )
    return StepSignals(hidden, attention, parts[0].attention_layers, prompt_attention=on_prompt, input_ids=ids)
