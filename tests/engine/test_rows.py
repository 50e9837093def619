"""Prefixes used again, prompts shared, prompts read in turn, memory refused in time."""

from __future__ import annotations

import random

import pytest
import torch

from tests.engine.test_decode import drain, generated, greedy, ids_of, make_engine
from uqchat.config import GenerationConfig
from uqchat.engine import decode
from uqchat.engine.adapters import Adapter, Dense, LowRank
from uqchat.engine.backend import FinishEvent, Request, StepEvent
from uqchat.engine.decode import Engine
from uqchat.engine.prefix import NOTHING, PrefixStore, common_length
from uqchat.errors import InputError
from uqchat.types import Signals

pytestmark = pytest.mark.usefixtures("both_forwards")

LONG = "this conversation has gone on for a while already. "


def count_read(engine: Engine) -> list[int]:
    """Lengths of the chunks that the engine reads from now on."""
    lengths: list[int] = []
    original = engine.forward.prefill

    def prefill(place: int, starts: list[int], chunks: list[tuple[int, ...]], *rest: object) -> list[torch.Tensor]:
        lengths.extend(map(len, chunks))
        return original(place, starts, chunks, *rest)

    engine.forward.prefill = prefill
    return lengths


@pytest.mark.parametrize("kind", ["llama", "mistral", "mixed"])
def test_the_next_turn_reads_only_what_is_new_and_says_the_same(kind: str) -> None:
    engine = make_engine(kind)
    first = ids_of(engine, LONG)
    (steps,), _ = drain(engine, greedy(first, 10))
    second = (*first, *(s.token_id for s in steps), *ids_of(engine, " and then?"))
    fresh = generated(engine, second, 12)
    read = count_read(engine)
    (steps,), _ = drain(engine, greedy(second, 12))
    assert [s.token_id for s in steps] == fresh
    assert sum(read) <= len(ids_of(engine, " and then?")) + 1  # the newest answer token was never fed


def storage_of(engine: Engine) -> set[int]:
    """Where the first layer's keys of all saved rows lie."""
    return {saved[0][0].data_ptr() for saved in engine.lineup.prefixes._rows.values()}


def test_a_turn_that_extends_the_only_conversation_goes_on_in_its_storage() -> None:
    engine = make_engine()
    text = ids_of(engine, LONG)
    drain(engine, greedy(text, 8))
    places = storage_of(engine)
    for turn in (" and then?", " why?", " are you sure?"):
        text = (*next(reversed(engine.lineup.prefixes._rows))[1], *ids_of(engine, turn))
        (steps,), _ = drain(engine, greedy(text, 8))
        assert [s.token_id for s in steps] == generated(engine, text, 8)
    assert storage_of(engine) == places and len(places) == 1


def test_turns_that_share_storage_with_a_saved_row_harm_it_in_no_company() -> None:
    """Go on alone, then with another who joins, then in an edited way; each also cut short, and each said again."""
    engine = make_engine()
    first = ids_of(engine, LONG)
    (steps,), _ = drain(engine, greedy(first, 8))
    saved = (*first, *(s.token_id for s in steps))[:-1]
    others = [ids_of(engine, "another chat, " + LONG), ids_of(engine, "hi")]
    prompts = [(*saved, *ids_of(engine, turn)) for turn in (" and?", " or not, if so?", " well")]
    prompts += [(*saved[:-9], *ids_of(engine, "edited"))]
    rng = random.Random(1)
    for prompt in [*prompts, *prompts[::-1], *prompts]:
        going = {engine.add(greedy(prompt, 7)): prompt}
        got: dict[int, list[int]] = {key: [] for key in going}
        for tick in range(30):
            if tick == rng.randint(0, 3):
                other = rng.choice([*others, rng.choice(prompts)])
                going[key := engine.add(greedy(other, 6))] = other
                got[key] = []
            if tick == 4 and rng.random() < 0.3:
                engine.remove(cut := next(iter(going)))
                del going[cut]
            for event in engine.step():
                if isinstance(event, StepEvent) and event.key in going:
                    got[event.key].append(event.step.token_id)
        for key, ids in going.items():
            assert got[key] == generated(engine, ids, len(got[key])) and len(got[key]) >= 6
        assert not engine.has_work


def test_an_edited_turn_reuses_the_common_beginning_only() -> None:
    engine = make_engine()
    drain(engine, greedy(ids_of(engine, LONG + "one way"), 8))
    other = ids_of(engine, LONG + "another way")
    expected = generated(engine, other, 8)
    read = count_read(engine)
    (steps,), _ = drain(engine, greedy(other, 8))
    assert [s.token_id for s in steps] == expected
    assert sum(read) == len(other) - len(ids_of(engine, LONG))


def test_saved_prefixes_stay_within_their_bytes_and_the_oldest_goes() -> None:
    def row(length: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(torch.zeros(2, length, 4), torch.zeros(2, length, 4))]

    one = 2 * 2 * 20 * 4 * 4
    store = PrefixStore(3 * one)
    ids = {name: tuple(range(start, start + 20)) for name, start in (("a", 0), ("b", 100), ("c", 200), ("d", 300))}
    for name in "abc":
        store.put(ids[name], row(20))
    assert store.find(ids["a"]).length == 20  # used last now
    store.put(ids["d"], row(20))
    assert store.find(ids["b"]) is NOTHING
    assert all(store.find(ids[name]).length == 20 for name in "acd")
    assert store.num_bytes == 3 * one
    assert store.find(ids["a"], adapter="voter") is NOTHING


def test_a_longer_row_replaces_the_one_it_extends() -> None:
    store = PrefixStore(10**6)
    store.put(range(20), [(torch.zeros(1, 20, 1), torch.zeros(1, 20, 1))])
    store.put(range(30), [(torch.zeros(1, 30, 1), torch.zeros(1, 30, 1))])
    assert len(store) == 1 and store.find(tuple(range(25))).length == 25


@pytest.mark.parametrize(
    ("a", "b", "length"), [((), (), 0), ((1, 2), (1, 3), 1), ((1, 2), (1, 2, 3), 2), ((1,), (2,), 0)]
)
def test_common_length(a: tuple, b: tuple, length: int) -> None:
    assert common_length(a, b) == length


def test_rows_with_one_prompt_share_its_reading_and_differ_by_seed() -> None:
    engine = make_engine()
    prompt = ids_of(engine, LONG)
    read = count_read(engine)
    configs = [GenerationConfig(max_new_tokens=10, temperature=1.0, seed=seed) for seed in range(5)]
    together, _ = drain(engine, greedy(prompt, 10), *(Request(prompt, c) for c in configs))
    assert read == [len(prompt)]
    assert [s.token_id for s in together[0]] == generated(engine, prompt, 10)
    for config, steps in zip(configs, together[1:], strict=True):
        (alone,), _ = drain(make_engine(), Request(prompt, config))
        assert [s.token_id for s in steps] == [s.token_id for s in alone]


def test_a_shared_prompts_signals_go_to_every_row_that_wants_the_same() -> None:
    engine = make_engine()
    prompt, wanted = ids_of(engine, LONG), Signals(hidden_layers=(1,), attention_lags=2, prompt_rows=True)
    read = count_read(engine)
    configs = [GenerationConfig(max_new_tokens=6, temperature=1.0, seed=seed) for seed in range(3)]
    together, _ = drain(engine, *(Request(prompt, c, signals=wanted) for c in configs), greedy(prompt, 6))
    assert read == [len(prompt)]
    for config, steps in zip(configs, together[:3], strict=True):
        (alone,), _ = drain(make_engine(), Request(prompt, config, signals=wanted))
        for one, many in zip(alone, steps, strict=True):
            assert one.token_id == many.token_id
            assert (one.signals.prompt is None) == (many.signals.prompt is None)
            torch.testing.assert_close(many.signals.hidden[1], one.signals.hidden[1], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(many.signals.attention, one.signals.attention, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(steps[0].signals.prompt.hidden[1], alone[0].signals.prompt.hidden[1])
    other = Request(prompt, configs[0], signals=Signals(hidden_layers=(0,)))
    assert not other.is_twin_of(Request(prompt, configs[0], signals=wanted))


def test_short_prompts_are_read_together_in_one_forward() -> None:
    engine = make_engine()
    prompts = [ids_of(engine, text) for text in ("a", "hello", "one more question", "and the last")]
    forwards = []
    original = engine.forward.prefill
    engine.forward.prefill = lambda *args: (forwards.append(len(args[2])), original(*args))[1]
    rows, _ = drain(engine, *(greedy(p, 6) for p in prompts))
    assert forwards == [4]
    assert [[s.token_id for s in row] for row in rows] == [generated(engine, p, 6) for p in prompts]


def test_a_row_that_ends_as_it_is_read_leaves_its_neighbours_whole() -> None:
    """The last row moves into the gap with all that the same forward has just written."""
    engine = make_engine()
    prompts = [ids_of(engine, text) for text in ("only scored", "hello", "one more question", "and the last")]
    scored = Request(prompts[0], GenerationConfig(max_new_tokens=0), ids_of(engine, "ok"))
    (given, *rows), _ = drain(engine, scored, *(greedy(p, 8) for p in prompts[1:]))
    assert "".join(s.text for s in given) == "ok"
    assert [[s.token_id for s in row] for row in rows] == [generated(engine, p, 8) for p in prompts[1:]]


def test_a_short_prompt_is_answered_while_a_long_one_is_still_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "PREFILL_CHUNK", 8)
    engine = make_engine()
    long = engine.add(greedy(ids_of(engine, LONG * 3), 4))
    short = engine.add(greedy(ids_of(engine, "hi"), 4))
    ends = []
    while engine.has_work:
        ends += [event.key for event in engine.step() if isinstance(event, FinishEvent)]
    assert ends == [short, long]


@pytest.mark.parametrize("kind", ["llama", "mixed", "mamba"])
def test_any_order_of_joining_reading_and_leaving_keeps_every_row_right(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "PREFILL_CHUNK", 9)
    rng = random.Random(4)
    engine = make_engine(kind)
    prompts = [ids_of(engine, f"{i}" + "word " * rng.randint(0, 9)) for i in range(14)]
    counts = [rng.randint(1, 14) for _ in prompts]
    expected = [generated(engine, p, c) for p, c in zip(prompts, counts, strict=True)]
    got: dict[int, list[int]] = {}
    removed = set()
    while len(got) < len(prompts) or engine.has_work:
        if len(got) < len(prompts) and rng.random() < 0.6:
            i = len(got)
            got[engine.add(greedy(prompts[i], counts[i]))] = []
        if got and rng.random() < 0.08:
            key = rng.choice(list(got))
            removed.add(key)
            got[key] += [e.step.token_id for e in engine.remove(key) if isinstance(e, StepEvent)]
        for event in engine.step():
            if isinstance(event, StepEvent):
                got[event.key].append(event.step.token_id)
    for key, ids in got.items():
        assert ids == (expected[key][: len(ids)] if key in removed else expected[key])
    assert len(engine.lineup.batch) == 0 and not engine.lineup.waiting


def test_a_request_that_can_never_fit_is_refused_with_the_numbers() -> None:
    """2 layers x 2 heads x 8 wide x 2 (keys, values) x 4 bytes = 256 bytes a token."""
    loaded_engine = make_engine()
    engine = Engine(loaded_engine.model, loaded_engine.vocabulary.tokenizer, memory=256 * 1024 * 8)
    drain(engine, greedy(ids_of(engine, "hi"), 4))
    with pytest.raises(InputError, match=r"needs 2 MiB.*8,00[0-9] tokens.*2 MiB are set aside"):
        engine.add(greedy(ids_of(engine, "hi"), 8000))


def test_rows_wait_until_their_memory_is_free() -> None:
    base = make_engine()
    engine = Engine(base.model, base.vocabulary.tokenizer, memory=256 * 60 * 4 // 3 * 2)
    prompts = [ids_of(engine, f"row {i}") for i in range(4)]
    keys = [engine.add(greedy(p, 50)) for p in prompts]
    most, ended = 0, []
    while engine.has_work:
        ended += [e.key for e in engine.step() if isinstance(e, FinishEvent)]
        most = max(most, len(engine.lineup.batch))
    assert sorted(ended) == keys and most == 2


def test_rows_with_adapters_equal_models_with_merged_weights_in_one_batch() -> None:
    """Base, low-rank and dense rows together, on one prompt and on others, prefixes saved and reused apart."""
    torch.manual_seed(3)
    engine = make_engine()
    name = "model.layers.0.self_attn.q_proj"
    a, b, dense = torch.randn(2, 32), torch.randn(32, 2), torch.randn(32, 32)
    engine.adapters.add(Adapter("low", {name: LowRank(a, b, 0.5)}))
    engine.adapters.add(Adapter("dense", {name: Dense(dense)}))
    prompts = [ids_of(engine, text) for text in (LONG, LONG, LONG, "short", "hello there")]
    adapters = [None, "low", "dense", "low", None]
    requests = [greedy(p, 12, adapter=name) for p, name in zip(prompts, adapters, strict=True)]
    for _ in range(2):  # the second time from saved prefixes
        rows, _ = drain(engine, *requests)
        for prompt, adapter, steps in zip(prompts, adapters, rows, strict=True):
            merged = make_engine()
            weight = merged.model.get_submodule(name).weight
            weight += {None: 0 * dense, "low": 0.5 * b @ a, "dense": dense}[adapter]
            assert [s.token_id for s in steps] == generated(merged, prompt, 12)
            logits = merged.model(torch.tensor([[*prompt, *(s.token_id for s in steps)]])).logits[
                0, len(prompt) - 1 : -1
            ]
            expected = logits.log_softmax(-1).gather(1, torch.tensor([[s.token_id] for s in steps]))[:, 0]
            torch.testing.assert_close(torch.tensor([s.logprob for s in steps]), expected, atol=1e-4, rtol=0)


def test_an_unknown_adapter_is_refused_before_anything_starts() -> None:
    engine = make_engine()
    with pytest.raises(InputError, match="no adapter 'x'; loaded: none"):
        engine.add(greedy(ids_of(engine, "hi"), adapter="x"))
    assert not engine.has_work
