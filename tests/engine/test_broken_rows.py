"""A row whose logits are no numbers ends with an error that says so; who comes after it says what it says alone.

What it wrote lies in its place as NaN. Whoever is longest in a batch decides how far all rows are read, so a later,
shorter row in that place meets it behind a mask, where 0 * NaN is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from tests.engine.test_decode import generated, greedy, ids_of
from tests.random_adapters import low_rank
from tests.tiny import tiny_model
from uqchat.config import GenerationConfig
from uqchat.engine import decode
from uqchat.engine.adapters import Adapter, LowRank
from uqchat.engine.backend import FinishEvent, Request, StepEvent
from uqchat.engine.broken import find_broken
from uqchat.engine.decode import Engine
from uqchat.errors import ModelError
from uqchat.types import Ensemble, StepSignals, Votes

pytestmark = pytest.mark.usefixtures("both_forwards")

BAD = "~"  # every position from this byte on is NaN
LONG = "a long prompt that reaches far beyond those that come after it, so that it leaves much behind"
LATER = ("short", LONG, "a", "the next one")


def make_engine(kind: str = "llama") -> Engine:
    """The model reads `BAD` as NaN, as float16 may a number that is too large for it, and never writes it."""
    loaded = tiny_model(kind)
    (at,) = loaded.tokenizer(BAD, add_special_tokens=False)["input_ids"]
    loaded.model.get_output_embeddings().weight[at] = 0
    engine = Engine(loaded.model, loaded.tokenizer)  # first: which forward it takes must not depend on the byte
    loaded.model.get_input_embeddings().weight[at] = math.nan
    return engine


def start_beside(engine: Engine) -> int:
    """A long answer under way, which keeps the storage of all rows alive."""
    key = engine.add(greedy(ids_of(engine, "hello"), 70))
    engine.step()
    return key


def run(engine: Engine, keys: Sequence[int], until: int | None = None) -> tuple[dict[int, list[int]], dict]:
    """Ids and ends of rows from now on, until all are done or one is."""
    ids: dict[int, list[int]] = {key: [] for key in keys}
    ends: dict[int, FinishEvent] = {}
    while engine.has_work and until not in ends:
        for event in engine.step():
            if isinstance(event, StepEvent):
                ids.setdefault(event.key, []).append(event.step.token_id)
            else:
                ends[event.key] = event
    return ids, ends


def check_later(engine: Engine) -> None:
    """Who asks now gets what the model says alone."""
    asked = {engine.add(greedy(ids_of(engine, text), 30)): ids_of(engine, text) for text in LATER}
    ids, ends = run(engine, list(asked))
    for key, prompt in asked.items():
        assert ids[key] == generated(engine, prompt, 30) and ends[key].reason == "length"


@pytest.mark.parametrize("kind", ["llama", "mixed", "neox"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("forced", ["", "so it is"])
@pytest.mark.parametrize("count", [0, 3])
def test_a_row_without_numbers_ends_with_an_error_and_harms_nobody(
    kind: str, temperature: float, forced: str, count: int
) -> None:
    engine = make_engine(kind)
    beside = start_beside(engine)
    generation = GenerationConfig(max_new_tokens=count, temperature=temperature)
    bad = engine.add(Request(ids_of(engine, LONG + BAD + LONG), generation, ids_of(engine, forced)))
    ids, ends = run(engine, [beside, bad], until=bad)
    if forced or count:  # else no logits are wanted, and it ends as one that is read to its end
        assert ids[bad] == [] and ends[bad].reason == "error" and isinstance(ends[bad].error, ModelError)
        assert "The model gave logits that are NaN or infinite" in str(ends[bad].error)
    assert len(engine.lineup.batch) == 1 and len(engine.lineup.prefixes) == 0
    check_later(engine)


def test_an_answer_keeps_the_tokens_before_the_first_without_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks of three ids: what is read together with a NaN is NaN before it too, behind the causal mask."""
    monkeypatch.setattr(decode, "PREFILL_CHUNK", 3)
    engine = make_engine()
    prompt, given = ids_of(engine, "hi"), ids_of(engine, "well" + BAD + "then")
    beside = start_beside(engine)
    bad = engine.add(Request(prompt, GenerationConfig(max_new_tokens=4), given))
    ids, ends = run(engine, [beside, bad], until=bad)
    assert tuple(ids[bad]) == given[:5] and ends[bad].reason == "error"  # the byte itself is predicted by numbers
    check_later(engine)


def test_a_row_that_is_stopped_before_anybody_saw_its_logits_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    start_beside(engine)
    monkeypatch.setattr(decode, "PREFILL_CHUNK", 60)
    bad = engine.add(greedy(ids_of(engine, BAD + LONG), 5))
    engine.step()
    assert engine.lineup.batch.reading
    engine.remove(bad)
    check_later(engine)


def test_a_row_that_breaks_while_another_is_read_leaves_what_that_one_has_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other has NaN too, which must stay until its own error tells: zeros in their place would answer."""
    monkeypatch.setattr(decode, "PREFILL_CHUNK", 60)
    engine = make_engine()
    start_beside(engine)
    long = engine.add(greedy(ids_of(engine, BAD + LONG * 2), 5))
    engine.step()
    short = engine.add(greedy(ids_of(engine, BAD + "so"), 5))
    ids, ends = run(engine, [long, short], until=short)
    assert ends[short].reason == "error" and long not in ends
    ids, ends = run(engine, [long], until=long)
    assert ids[long] == [] and ends[long].reason == "error"
    check_later(engine)


def test_all_answers_to_one_prompt_end_with_the_error() -> None:
    engine = make_engine()
    start_beside(engine)
    prompt = ids_of(engine, LONG + BAD)
    keys = [engine.add(Request(prompt, GenerationConfig(4, 1.0, seed=seed))) for seed in range(3)]
    ids, ends = run(engine, keys, until=keys[-1])
    assert all(ids[key] == [] and ends[key].reason == "error" for key in keys)
    check_later(engine)


@pytest.mark.parametrize("has_company", [False, True])
def test_a_broken_turn_leaves_nothing_for_the_next_one(has_company: bool) -> None:
    """Alone, a turn goes on in the saved storage itself. The byte is healed meanwhile, as luck may: the same turn works
    then, and a shorter one, which a longer row beside it makes look at all that the broken one wrote."""
    engine = make_engine()
    run(engine, [engine.add(greedy(ids_of(engine, LONG), 4))])
    ((_, before),) = engine.lineup.prefixes._rows
    turns = [(*before, *ids_of(engine, text)) for text in (" so", " and" + BAD + " then?")]
    if has_company:
        start_beside(engine)
    bad = engine.add(greedy(turns[1], 4))
    _, ends = run(engine, [bad])
    assert ends[bad].reason == "error"
    weight = engine.model.get_input_embeddings().weight
    weight[ids_of(engine, BAD)[0]] = weight[0]
    asked = {engine.add(greedy(ids, 20)): ids for ids in (turns[0], ids_of(engine, LONG * 2), turns[1])}
    ids, _ = run(engine, list(asked))
    for key, given in asked.items():
        assert ids[key] == generated(engine, given, 20)


def test_an_adapter_without_numbers_is_named() -> None:
    engine = make_engine()
    change = low_rank(engine.model, "student", 2, ("v_proj",))
    layers = {name: LowRank(delta.a * math.nan, delta.b) for name, delta in change.deltas.items()}
    engine.adapters.add(Adapter("student", layers))
    start_beside(engine)
    bad = engine.add(greedy(ids_of(engine, LONG * 2), 4, adapter="student"))
    _, ends = run(engine, [bad], until=bad)
    assert "The model with the adapter 'student' gave logits that are NaN" in str(ends[bad].error)
    check_later(engine)


@pytest.mark.parametrize(
    ("logprob", "votes", "blamed"),
    [
        (-1.0, (0.5, 0.5), None),
        (-math.inf, (0.5, 0.5), None),  # a given token that the model rules out
        (-1.0, (0.5, math.nan), "Voter 2 of 2 (b)"),
        (math.nan, (0.5, math.nan), "Voter 2 of 2 (b)"),  # the mean of the voters decides
        (math.nan, (math.nan, math.nan), "The model gave"),
        (math.nan, (), "The model gave"),
    ],
)
def test_who_is_blamed(logprob: float, votes: tuple[float, ...], blamed: str | None) -> None:
    signals = StepSignals(votes={Ensemble(("a", "b")): Votes(0.0, 0.0, votes)}) if votes else None
    error = find_broken(Request((1,), GenerationConfig()), logprob, signals)
    assert str(error).startswith(blamed) if blamed else error is None


def test_a_row_that_has_no_storage_yet_is_no_hindrance() -> None:
    """Rows that wait for their turn to be read count as rows, though nothing was allocated for them."""
    engine = make_engine()
    start_beside(engine)
    storage = engine.forward.cache
    with torch.inference_mode():
        engine.forward.mend([3] * (storage.rows + 2))
    assert all(torch.isfinite(layer.keys).all() for layer in storage.layers)
