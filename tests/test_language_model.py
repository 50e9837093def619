"""What `uqchat.load` returns, on a tiny random model; the last tests run the real embedded one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import uqchat
from tests.tiny import tiny_model
from uqchat import answering
from uqchat.config import GenerationConfig
from uqchat.errors import InputError
from uqchat.language_model import LanguageModel, drain

ALL = ("entropy", "max_prob", "margin")
SHORT = GenerationConfig(max_new_tokens=12)


@pytest.fixture
def model() -> Iterator[LanguageModel]:
    made = LanguageModel(tiny_model())
    yield made
    made.close()


def test_stream_gives_every_token_and_returns_the_answer(model: LanguageModel) -> None:
    stream = model.stream("hello", ALL, SHORT)
    tokens = []
    while True:
        try:
            tokens.append(next(stream))
        except StopIteration as end:
            answer = end.value
            break
    assert tuple(tokens) == answer.tokens and len(tokens) == 12
    assert answer.text == "".join(t.text for t in tokens)
    assert list(answer.risks) == list(ALL) == list(answer.summaries)
    assert answer.finish_reason == "length" and answer.model == "tiny-llama"


def test_answer_is_the_drained_stream_and_messages_come_in_any_form(model: LanguageModel) -> None:
    forms = ["hello", [{"role": "user", "content": "hello"}], [uqchat.Message("user", "hello")]]
    texts = {model.answer(form, generation=SHORT).text for form in forms}
    assert texts == {drain(model.stream("hello", generation=SHORT)).text}


def test_answers_are_those_of_each_conversation_alone(model: LanguageModel) -> None:
    prompts = ["a", "hello", "how are you today?"]
    together = model.answers(prompts, ALL, SHORT)
    alone = [model.answer(p, ALL, SHORT) for p in prompts]
    assert [[t.token_id for t in a.tokens] for a in together] == [[t.token_id for t in a.tokens] for a in alone]


def test_one_bad_conversation_among_answers_raises(model: LanguageModel) -> None:
    with pytest.raises(InputError, match="too long"):
        model.answers(["a", "x" * 1000], generation=SHORT)
    assert model.running == 0


def test_score_of_the_own_answer_gives_the_same_log_probabilities(model: LanguageModel) -> None:
    answer = model.answer("hello", ALL, SHORT)
    scored = model.score("hello", [t.token_id for t in answer.tokens], ALL)
    assert scored.text == answer.text and scored.finish_reason == "given"
    assert [t.logprob for t in scored.tokens] == pytest.approx([t.logprob for t in answer.tokens], abs=1e-4)
    assert scored.risks["entropy"].value == pytest.approx(answer.risks["entropy"].value, abs=1e-4)


def test_score_takes_text_lists_arrays_and_tensors(model: LanguageModel) -> None:
    ids = model.tokenizer("a🐱", add_special_tokens=False)["input_ids"]
    expected = model.score("hello", ids)
    assert len(expected.tokens) == len(ids) and expected.text == "a🐱"
    for form in ("a🐱", torch.tensor(ids), torch.tensor(ids).numpy(), tuple(ids)):
        assert [t.logprob for t in model.score("hello", form).tokens] == [t.logprob for t in expected.tokens]


def test_scoring_can_be_stopped(model: LanguageModel) -> None:
    stop = threading.Event()
    stop.set()
    assert model.score("hello", "a b c", stop=stop).finish_reason == "cancelled"


def test_scores_of_many_are_those_of_each_alone(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "BATCH_WINDOW", 3)
    questions, answers = [f"question {i}" for i in range(8)], [f"answer {'x' * i}" for i in range(8)]
    together = model.scores(questions, answers, ALL)
    for question, answer, scored in zip(questions, answers, together, strict=True):
        alone = model.score(question, answer, ALL)
        assert scored.text == answer
        assert [t.logprob for t in scored.tokens] == pytest.approx([t.logprob for t in alone.tokens], abs=1e-4)
    with pytest.raises(InputError, match="2 conversations but 1 answers"):
        model.scores(["a", "b"], ["c"])


@pytest.mark.parametrize(("answer", "message"), [("", "empty"), ([], "empty"), ([10**6], "outside"), ([-1], "outside")])
def test_score_refuses_what_is_no_answer(model: LanguageModel, answer: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.score("hello", answer)


def test_answer_prefix_is_kept_and_continued(model: LanguageModel) -> None:
    whole = model.answer("hello", generation=SHORT)
    ids = [t.token_id for t in whole.tokens[:5]]
    continued = model.answer("hello", generation=GenerationConfig(max_new_tokens=7), answer_prefix=ids)
    assert [t.token_id for t in continued.tokens] == [t.token_id for t in whole.tokens]


def test_stop_ends_as_cancelled_and_keeps_what_came(model: LanguageModel) -> None:
    stop = threading.Event()
    stream = model.stream("hello", generation=GenerationConfig(max_new_tokens=200), stop=stop)
    first = next(stream)
    stop.set()
    answer = drain(stream)
    assert answer.finish_reason == "cancelled" and answer.tokens[0] == first and len(answer.tokens) < 200


def test_the_answer_is_limited_to_the_context_window(model: LanguageModel) -> None:
    answer = model.answer("x" * 100, generation=GenerationConfig(max_new_tokens=10_000))
    assert answer.prompt_tokens + len(answer.tokens) <= model.info.context_window


def test_dropped_messages_are_counted(model: LanguageModel) -> None:
    talk = [{"role": role, "content": "y" * 60} for role in ("user", "assistant") * 3] + [
        {"role": "user", "content": "z"}
    ]
    assert model.answer(talk, generation=SHORT).dropped_messages == 4


def test_to_json_is_plain_data(model: LanguageModel) -> None:
    answer = model.answer("hello", ALL, SHORT)
    data = json.loads(json.dumps(answer.to_json()))
    assert data["text"] == answer.text and data["finish_reason"] == "length"
    token = data["tokens"][0]
    assert set(token) >= {"index", "token_id", "text", "span", "logprob", "entropy", "alternatives", "risks"}
    assert token["risks"]["margin"].keys() == {"value", "raw", "calibration"}
    assert token["alternatives"][0].keys() == {"token_id", "text", "logprob"} and len(token["alternatives"]) == 10
    assert data["summaries"]["entropy"].keys() == {"mean", "max", "sum"}


def test_a_closed_model_says_so(model: LanguageModel) -> None:
    model.close()
    with pytest.raises(InputError, match="closed"):
        model.answer("hello")


# ---- the real model


@pytest.fixture(scope="module")
def questions(shared: Path) -> list[str]:
    """20 questions, evenly spread over the easy facts."""
    lines = (shared / "data/open_qa/easy_facts_eval.jsonl").read_text().splitlines()
    return [json.loads(line)["question"] for line in lines[:: len(lines) // 20][:20]]


@pytest.mark.model
def test_greedy_ids_equal_generate_on_twenty_questions(
    embedded: LanguageModel, questions: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A first difference only where the two largest logits lie within 1e-4; those are counted and printed."""
    config = GenerationConfig(max_new_tokens=40)
    answers = embedded.answers(questions, generation=config)
    near_ties = 0
    for question, answer in zip(questions, answers, strict=True):
        prompt = _prompt_ids(embedded, question)
        with torch.inference_mode():
            out = embedded.model.generate(prompt, max_new_tokens=40, do_sample=False)[0, prompt.shape[1] :]
        ours = [t.token_id for t in answer.tokens]
        different = [i for i, (a, b) in enumerate(zip(ours, out.tolist(), strict=False)) if a != b]
        if different:
            first, second = answer.tokens[different[0]].alternatives[:2]
            assert first.logprob - second.logprob < 1e-4, f"{question}: token {different[0]} is no near tie"
            near_ties += 1
        else:
            assert len(ours) == len(out)
    with capsys.disabled():
        print(f" [greedy equals generate on {len(questions)} questions; near ties: {near_ties}]", end="")


@pytest.mark.model
def test_log_probabilities_equal_a_teacher_forced_forward(embedded: LanguageModel, questions: list[str]) -> None:
    for question in questions[:5]:
        answer = embedded.answer(question, generation=GenerationConfig(max_new_tokens=40))
        prompt = _prompt_ids(embedded, question)
        ids = torch.tensor([[t.token_id for t in answer.tokens]])
        with torch.inference_mode():
            logits = embedded.model(torch.cat([prompt, ids], dim=1)).logits[0, prompt.shape[1] - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, ids[0, :, None])[:, 0]
        torch.testing.assert_close(torch.tensor([t.logprob for t in answer.tokens]), expected, atol=1e-4, rtol=0)


def _prompt_ids(model: LanguageModel, question: str) -> torch.Tensor:
    return model.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
