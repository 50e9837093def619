"""Heads as estimators: streamed scores, revisions, claims, company, and heads that must not be trusted."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from tests.heads.making import ATTENTION, OPTIONS, PROBABILITIES, STATES, random_head, write_folder
from tests.tiny import tiny_model
from uqchat.claims import answer_spans, token_indices
from uqchat.config import GenerationConfig
from uqchat.engine.backend import Request
from uqchat.errors import UqchatError
from uqchat.estimators.uq_head import UqHead
from uqchat.features_base import ModelShape
from uqchat.heads import HeadError, HeadScorer, load_head, save_head
from uqchat.language_model import LanguageModel, drain
from uqchat.origin import origin_of
from uqchat.scoring import rescore
from uqchat.types import ScoredToken

SHORT = GenerationConfig(max_new_tokens=20)
TEXT = "Paris is big. Rome is old! And so on"
KINDS = {
    "both ways": ("luh", {}),
    "causal": ("luh", {"is_causal": True}),
    "per token": ("saplma", {}),
    "claims": ("claim", {}),
}


@pytest.fixture(scope="module")
def model() -> Iterator[LanguageModel]:
    made = LanguageModel(tiny_model())
    yield made
    made.close()


@pytest.fixture(scope="module")
def folders(model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A folder of ours for each kind of head."""
    made = {}
    for kind, (head_type, options) in KINDS.items():
        folder = tmp_path_factory.mktemp("heads") / kind.replace(" ", "-")
        head = random_head(head_type, model.model, (ATTENTION, PROBABILITIES, STATES), **options)
        save_head(replace(head, info=origin_of(model)), folder)
        made[kind] = str(folder)
    return made


def at_once(model: LanguageModel, folder: str, messages: str, ids: list[int]) -> HeadScorer:
    """All steps of a given answer in one scorer, without estimator, scoring and worker."""
    head = load_head(folder, model)
    prompt, _ = model._request([*_messages(messages)], SHORT, (), [])
    request = Request(prompt.prompt_ids, GenerationConfig(max_new_tokens=0), tuple(ids), head.needs)
    scorer = HeadScorer(head)
    for event in LanguageModel(model.info).engine.stream([request]):
        if hasattr(event, "step"):
            scorer.add(event.step)
    return scorer


def _messages(text: str) -> list:
    from uqchat.types import as_messages

    return as_messages(text)


@pytest.mark.parametrize("kind", ["both ways", "causal", "per token"])
def test_a_streamed_answer_ends_with_the_scores_of_the_whole_and_of_teacher_forcing(
    kind: str, model: LanguageModel, folders: dict[str, str]
) -> None:
    name = folders[kind]
    stream = model.stream("hello", (name, "entropy"), SHORT)
    seen: list[ScoredToken] = []
    while True:
        try:
            seen.append(next(stream))
        except StopIteration as end:
            answer = end.value
            break
    newest = {token.index: token for token in seen}
    assert tuple(newest.values()) == answer.tokens and all(name in token.risks for token in seen)
    is_revised = len(seen) > len(answer.tokens)
    assert is_revised == (kind == "both ways")
    ids = [token.token_id for token in answer.tokens]
    scorer = at_once(model, name, "hello", ids)
    expected = scorer.claims([[i] for i in range(len(ids))])
    raws = [token.risks[name].raw for token in answer.tokens]
    assert raws == pytest.approx(expected, abs=1e-4)
    assert [t.risks[name].value for t in answer.tokens] == pytest.approx(torch.tensor(raws).sigmoid().tolist())
    scored = model.score("hello", ids, name)
    assert [token.risks[name].raw for token in scored.tokens] == pytest.approx(raws, abs=1e-4)


def test_a_claim_heads_sentences_have_one_risk_each_and_are_judged_when_they_end(
    model: LanguageModel, folders: dict[str, str]
) -> None:
    name = folders["claims"]
    ids = model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    stream = model.stream("hello", name, GenerationConfig(max_new_tokens=0), answer_prefix=ids)
    seen = []
    while True:
        try:
            seen.append(next(stream))
        except StopIteration as end:
            answer = end.value
            break
    first_end = TEXT.index(".")
    before_next = [token for token in seen[: seen.index(next(t for t in seen if t.index == first_end + 2))]]
    visible = {i for i in range(first_end + 1) if TEXT[i] != " "}
    assert {t.index for t in before_next if name in t.risks} == visible, "judged when it ended"
    claims = token_indices(answer_spans(answer.tokens), answer.tokens)
    assert len(claims) == 3
    expected = at_once(model, name, "hello", ids).claims(claims)
    for claim, logit in zip(claims, expected, strict=True):
        assert [answer.tokens[i].risks[name].raw for i in claim] == pytest.approx([logit] * len(claim), abs=1e-4)
    assert len({round(logit, 6) for logit in expected}) == 3
    assert model.describe(name).level == "sentence"


@pytest.mark.parametrize("kind", list(KINDS))
def test_stored_tokens_keep_their_risk(kind: str, model: LanguageModel, folders: dict[str, str]) -> None:
    answer = model.score("hello", TEXT, (folders[kind], "entropy"))
    estimator = UqHead(load_head(folders[kind], model), folders[kind])
    again = rescore(answer.tokens, [estimator])
    kept = [token.risks.get(folders[kind]) for token in answer.tokens]
    assert [token.risks.get(folders[kind]) for token in again] == kept and any(kept)


def test_eight_chats_half_with_heads_get_what_each_gets_alone(model: LanguageModel, folders: dict[str, str]) -> None:
    """Together in one batch, with other estimators that ask for other layers and lags beside the heads."""
    prompts = [f"question number {'x' * i}" for i in range(8)]
    names = list(folders.values())
    chosen = [(names[i // 2], "rauq", "entropy") if i % 2 else ("entropy", "lookback") for i in range(8)]
    alone = [model.answer(p, c, SHORT) for p, c in zip(prompts, chosen, strict=True)]
    with ThreadPoolExecutor(8) as pool:
        streams = [model.stream(p, c, SHORT) for p, c in zip(prompts, chosen, strict=True)]
        together = list(pool.map(drain, streams))
    for one, many, estimators in zip(alone, together, chosen, strict=True):
        assert many.text == one.text and list(many.risks) == list(one.risks)
        for a, b in zip(one.tokens, many.tokens, strict=True):
            assert set(a.risks) == set(b.risks) <= set(estimators)
            for name, risk in a.risks.items():
                assert b.risks[name].raw == pytest.approx(risk.raw, abs=1e-3), (a.index, name)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_batch_call_scores_as_single_ones_do(kind: str, model: LanguageModel, folders: dict[str, str]) -> None:
    texts = [TEXT, "Yes.", "x"]
    together = model.scores(["hello"] * 3, texts, folders[kind])
    for text, many in zip(texts, together, strict=True):
        one = model.score("hello", text, folders[kind])
        raws = [[token.risks[folders[kind]].raw for token in a.tokens if token.risks] for a in (one, many)]
        assert raws[0] == pytest.approx(raws[1], abs=1e-4) and len(raws[0]) > 0


# ---- heads that must not be trusted


class Code:
    """Runs a command when it is unpickled without care."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def change_config(folder: Path, **changes: object) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | changes))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = torch.load(folder / "weights.pth", weights_only=True)
    change(weights)
    torch.save(weights, folder / "weights.pth")


def wrong_keys(folder: Path) -> None:
    change_weights(folder, lambda weights: weights.update({"classifier.9.weight": weights.pop("classifier.4.weight")}))


def code_in_a_pickle(folder: Path) -> None:
    (folder / "weights.pth").write_bytes(pickle.dumps(Code(folder / "ran")))


def unknown_extractor(folder: Path) -> None:
    change_config(folder, feature_extractor=[{"name": "os.system", "command": f"touch {folder / 'ran'}"}])


def hostile_yaml(folder: Path) -> None:
    (folder / "config.yaml").write_text(f"!!python/object/apply:os.system ['touch {folder / 'ran'}']")


def other_size(folder: Path) -> None:
    write_folder(folder, ModelShape(num_layers=3, num_heads=4, hidden_size=32, vocab_size=260))


def nan_weights(folder: Path) -> None:
    change_weights(folder, lambda weights: weights["proj.0.weight"].fill_(float("nan")))


def huge_weights(folder: Path) -> None:
    """Finite, so they load; their logits are not."""
    change_weights(folder, lambda weights: weights["classifier.4.bias"].fill_(3e38))
    change_weights(folder, lambda weights: weights["classifier.4.weight"].fill_(3e38))


HOSTILE: dict[Callable[[Path], None], str] = {
    wrong_keys: "missing classifier.4.weight; unexpected classifier.9.weight",
    code_in_a_pickle: "weights.pth",
    unknown_extractor: "Unknown feature extractor 'system'",
    hostile_yaml: "config.yaml",
    other_size: "F = 27 numbers.* gives F = 19",
    nan_weights: "proj.0.weight.*no finite numbers",
    huge_weights: "gave .*(inf|nan) for token 0",
}


@pytest.mark.parametrize("damage", list(HOSTILE), ids=lambda damage: damage.__name__)
def test_a_hostile_head_is_refused_and_the_model_goes_on(
    damage: Callable[[Path], None], model: LanguageModel, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "head", model.model)
    damage(folder)
    before = model.answer("hello", "entropy", SHORT)
    with pytest.raises(UqchatError, match=HOSTILE[damage]):
        model.answer("hello", ("entropy", str(folder)), SHORT)
    assert not (folder / "ran").exists() and model.running == 0
    assert model.answer("hello", "entropy", SHORT).risks == before.risks


def test_numbers_out_of_range_while_streaming_are_a_heads_error(model: LanguageModel, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "head", model.model)
    huge_weights(folder)
    with pytest.raises(HeadError, match="load the model in float32"):
        drain(model.stream("hello", str(folder), SHORT))
    assert OPTIONS["luh"]["interim_dim"], "these heads have the classifier whose weights are damaged above"
