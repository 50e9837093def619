"""Which forward runs a model: our own where it says the same as the model's code, else the model's. Knows no row."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from uqchat.engine.fast_forward import FastForward
from uqchat.engine.forward import BatchedForward, Forward, SequentialForward, is_batchable
from uqchat.four_bit import Int4Linear
from uqchat.int8 import Int8Linear

log = logging.getLogger(__name__)

# Root mean square of the logits' difference by that of the logits: a wrong layer gives 0.3 and more.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}
LENGTHS = (29, 12)  # of the two random prompts that are read for the check


@dataclass(frozen=True, slots=True)
class Choice:
    """A forward, and a sentence for the log and the system page: which one runs, and why."""

    forward: Forward
    note: str


def choose_forward(model: PreTrainedModel, is_fast_wanted: bool = True) -> Choice:
    """The fastest forward that is right for this model; `is_fast_wanted=False` leaves our own out."""
    choice = _choose(model, is_fast_wanted)
    log.info("%s: %s", type(model).__name__, choice.note)
    return choice


def _choose(model: PreTrainedModel, is_fast_wanted: bool) -> Choice:
    if not is_batchable(model):
        return Choice(SequentialForward(model), "One row at a time: its layers keep more than plain keys and values.")
    generic = BatchedForward(model)
    if not is_fast_wanted:
        return Choice(generic, "The model's own forward, as was asked for.")
    try:
        fast = FastForward(model)
        difference = compare(generic, fast)
    except Exception as error:  # noqa: BLE001  models of any origin; the generic forward runs them all
        return Choice(generic, f"The model's own forward: {error}.")
    allowed = TOLERANCES.get(torch.bfloat16 if _rounds(model) else model.dtype, 0.0)
    if not difference <= allowed:  # also where it is not a number
        reason = f"our own differs by {difference:.1e} of the logits' size, more than {allowed:.0e}"
        return Choice(generic, f"The model's own forward: {reason}.")
    copied = ", with a packed copy of the weights" if fast.is_packed else ""
    return Choice(fast, f"Our own forward{copied}: in a check it differed by {difference:.0e} of the logits' size.")


def _rounds(model: PreTrainedModel) -> bool:
    """Whether some layers round what they read to bfloat16, whatever the model's own format."""
    return any(isinstance(module, Int8Linear | Int4Linear) for module in model.modules())


def compare(first: Forward, second: Forward) -> float:
    """Relative difference of the two forwards' logits: of two random prompts, a step, and ids read behind it."""
    model = first.model
    generator = torch.Generator().manual_seed(0)
    size = model.get_input_embeddings().weight.shape[0]
    prompts = [torch.randint(size, (length,), generator=generator).tolist() for length in LENGTHS]
    ids = torch.tensor([prompt[0] for prompt in prompts], device=model.device)
    logits = []
    with torch.inference_mode():
        for forward in (first, second):
            read = forward.prefill(0, [0] * len(prompts), prompts, LENGTHS)
            step = forward.decode(LENGTHS, ids)
            more = forward.prefill(0, [length + 1 for length in LENGTHS], [prompts[1]] * 2, [LENGTHS[1]] * 2)
            logits.append(torch.cat([*read, step, *more]).float())
            forward.release()
    difference = (logits[0] - logits[1]).square().mean().sqrt()
    return float(difference / (logits[0] - logits[0].mean()).square().mean().sqrt())
