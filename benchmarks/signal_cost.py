"""What a UQ head's signals cost the engine: while decoding, and for all rows of a long prompt with the bytes kept."""

from __future__ import annotations

from benchmarks.common import Row, cost, decode_steps, interleave, load_endless, prompt_of, request_of, save
from uqchat.engine.backend import Request, StepEvent
from uqchat.engine.decode import Engine
from uqchat.types import Signals, StepSignals

PROMPT, NEW, LONG = 76, 64, 2000
HEAD = Signals(top_n=5, entropy=True, hidden_layers=(20,), attention_lags=5)
WHOLE = HEAD | Signals(prompt_rows=True)
MAX_MIB = 20


def read(engine: Engine, request: Request) -> StepSignals | None:
    """Read a prompt; the signals that came with the first token."""
    engine.lineup.prefixes.clear()
    steps = [event.step for event in engine.stream([request]) if isinstance(event, StepEvent)]
    return steps[0].signals


def kept_bytes(signals: StepSignals) -> int:
    """Bytes of the prompt's tensors."""
    tensors = [*signals.prompt.hidden.values(), signals.prompt.attention]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def main(repeats: int) -> None:
    """Both costs."""
    model = load_endless()
    engine = model.engine
    short, long = prompt_of(model, PROMPT), prompt_of(model, LONG)
    decode = interleave(
        {
            "plain": lambda: decode_steps(engine, [request_of(short, NEW + 16)], NEW),
            "signals": lambda: decode_steps(engine, [request_of(short, NEW + 16, signals=HEAD)], NEW),
        },
        repeats,
    )
    prefill = interleave(
        {
            "plain": lambda: 1 + 0 * bool(read(engine, request_of(long, 1))),
            "signals": lambda: 1 + 0 * bool(read(engine, request_of(long, 1, signals=WHOLE))),
        },
        repeats,
    )
    mib = kept_bytes(read(engine, request_of(long, 1, signals=WHOLE))) / 2**20
    claim = f"signals of a UQ head for all {len(long)} rows of a prompt, MiB kept"
    rows = [
        cost("decoding with a UQ head's signals against plain decoding, time", decode, "signals", "plain", 1.10),
        cost(f"reading {len(long)} tokens with those signals against without, time", prefill, "signals", "plain", 1.10),
        Row(claim, "signals", "", mib, mib, mib, f"<= {MAX_MIB}", mib <= MAX_MIB, "all layers, 5 lags, layer 20"),
    ]
    save("signal_cost", rows, {"prompt": len(short), "new": NEW, "long": len(long), "repeats": repeats})


if __name__ == "__main__":
    main(3)
