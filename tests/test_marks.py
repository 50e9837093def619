"""Right / wrong marks become a calibration that the next answers use."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.doubles import scored_tokens
from uqchat.errors import InputError, StoreError
from uqchat.marks import MIN_MARKS, MarkedAnswer, refit, require_enough
from uqchat.store import Store


def marks(count: int, wrong_from: int) -> list[MarkedAnswer]:
    """Answers whose score grows; from `wrong_from` on they are wrong, but for every fifth."""
    return [MarkedAnswer(i / 10, (i >= wrong_from) != (i % 5 == 0), 7 + i % 3) for i in range(count)]


@pytest.mark.parametrize("given", [marks(MIN_MARKS - 1, 20), [MarkedAnswer(1.0, True, 3)] * MIN_MARKS])
def test_too_few_marks_or_marks_that_all_agree_are_refused_with_their_numbers(given: list[MarkedAnswer]) -> None:
    with pytest.raises(InputError, match=r"at least 50 marked answers.*wrong"):
        require_enough(given)


def test_marks_become_the_answer_map_of_an_untrained_estimator_of_this_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.tiny import tiny_model
    from uqchat.calibration import fit_calibration, read_calibrations
    from uqchat.language_model import from_loaded

    monkeypatch.setenv("UQCHAT_ESTIMATORS_DIR", str(tmp_path))
    model = from_loaded(tiny_model())
    given = marks(60, 30)
    path = refit(model, "entropy", given, tmp_path)
    fitted = read_calibrations(path.parent).answer
    wanted = fit_calibration(
        [m.raw for m in given], [m.is_error for m in given], "platt", level="answer", scope=fitted.scope
    )
    assert fitted.apply(3.0) == pytest.approx(wanted.apply(3.0)) and fitted.apply(5.0) > fitted.apply(0.5)
    assert (fitted.scope.max_answer_tokens, fitted.rows) == (9, 60)
    assert model.estimator("entropy").calibrations.answer == fitted
    with pytest.raises(InputError, match="calibration of its own"):
        refit(model, "probe", given, tmp_path)
    model.close()


def test_only_marks_of_whole_answers_of_this_user_and_model_count() -> None:
    store = Store("sqlite://")
    for user, model, text in (
        ("ann", "m", "Paris."),
        ("ann", "m", "Lyon."),
        ("ann", "n", "Osh."),
        ("bob", "m", "Rome."),
    ):
        chat = store.create_chat(user).id
        asked = store.add_message(user, chat, None, "user", "Capital?")
        answer = store.add_message(user, chat, asked.id, "assistant", "", model=model)
        store.save_answer(user, answer.id, text, scored_tokens(text), "done")
        store.set_label(user, answer.id, text == "Lyon.")
        store.set_label(user, answer.id, True, 0, 2)
    assert store.count_marks("ann", "m") == (1, 1) and store.count_marks("bob", "m") == (1, 0)
    assert [answer.text for answer in store.marked_answers("ann", "m")] == ["Paris.", "Lyon."]
    store.delete_chat("ann", chat_id := store.list_chats("ann")[-1].id)
    assert store.count_marks("ann", "m") == (0, 1)
    with pytest.raises(StoreError):
        store.get_chat("ann", chat_id)
