"""Claims about exported and imported chats."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.doubles import scored_tokens
from uqchat.errors import InputError, StoreError
from uqchat.render import RiskView
from uqchat.store import Store, StoredMessage
from uqchat.token_codec import AnswerScores
from uqchat.transfer import MAX_IMPORT_BYTES, export_chat, import_chat
from uqchat.transfer_csv import safe_cell
from uqchat.types import Decision, Risk

HOSTILE = (
    "<script>alert(1)</script> ${alert(1)} ![x](http://evil.example/x.png) \u202e <img src=//evil.example onerror=x>"
)


def chat_in(store: Store, question: str = "Capital?", answers: tuple[str, ...] = ("Paris.", "It is Lyon.")) -> str:
    """A chat of ann's with a question and versions of its answer, the first one labelled."""
    chat_id = store.create_chat("ann", "Capitals").id
    asked = store.add_message("ann", chat_id, None, "user", question)
    for text in answers:
        row = store.add_message("ann", chat_id, asked.id, "assistant", "", status="streaming", model="m")
        store.save_answer("ann", row.id, text, scored_tokens(text), "done", "stop")
        store.set_label("ann", row.id, len(text) > 8, 0, 2)
    return chat_id


def exported(store: Store, chat_id: str) -> dict[str, Any]:
    """The JSON file, read."""
    return json.loads(export_chat(store, "ann", chat_id, "json")[1])


def without_ids(messages: list[StoredMessage]) -> list[StoredMessage]:
    """The messages with their ids replaced by their places, so that two copies of a chat compare equal."""
    places = {message.id: str(place) for place, message in enumerate(messages)} | {None: None}
    return [
        replace(m, id=places[m.id], parent_id=places[m.parent_id], active_child=places[m.active_child], chat_id="chat")
        for m in messages
    ]


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


@st.composite
def trees(draw: st.DrawFn) -> list[tuple[int | None, str, str, int, list[bool | None]]]:
    """Messages in order: place of the parent, text, status, how many tokens are reasoning, labels."""
    messages = []
    for place in range(draw(st.integers(0, 8))):
        parent = draw(st.one_of(st.none(), st.integers(0, place - 1))) if place else None
        status = draw(st.sampled_from(["done", "cancelled", "error"]))
        labels = draw(st.lists(st.booleans(), max_size=2))
        messages.append((parent, draw(TEXTS), status, draw(st.integers(0, 2)), labels))
    return messages


def fill(store: Store, tree: list[tuple[int | None, str, str, int, list[bool | None]]]) -> str:
    """A chat with that tree: questions at even depth, answers with tokens below them."""
    chat_id = store.create_chat("ann", "Any").id
    ids: list[str] = []
    roles: list[str] = []
    for parent, text, status, reasoning, labels in tree:
        role = "assistant" if parent is not None and roles[parent] == "user" else "user"
        row = store.add_message("ann", chat_id, None if parent is None else ids[parent], role, text)
        ids.append(row.id), roles.append(role)
        if role == "assistant":
            tokens = scored_tokens(text, reasoning=reasoning)
            odd = {"odd": Risk(1.0, math.inf, "a scope"), "vote": Risk(0.1, 0.1, None, (0.5, 1.0, 3e-39))}
            tokens = tuple(replace(t, risks=t.risks | odd) for t in tokens)
            decision = Decision("trimmed", "mine", 2, "trim", "odd", 0.5, None, text, hidden=((0, 2), (4, 7)))
            answer = {"odd": Risk(0.5, -math.inf, "a scope"), "vote": Risk(0.1, 0.1, voters=(0.25, 1 / 3))}
            scores = AnswerScores(answer, {"odd": text}, {"query": "no reply"}, decision if labels else None)
            store.save_answer(
                "ann", row.id, text, tokens, status, None, "why" if status == "error" else None, 3, scores
            )
            for start, is_error in enumerate(labels):
                if start < len(text):
                    store.set_label("ann", row.id, is_error, start, len(text))
    return chat_id


@settings(max_examples=25, deadline=None)
@given(trees())
def test_a_chat_survives_export_and_import_unchanged(tree: list[Any]) -> None:
    """Equal in tokens, versions, labels, states and active branch; ids are fresh. Twice gives the same file again."""
    store = Store("sqlite://")
    chat_id = fill(store, tree)
    data = export_chat(store, "ann", chat_id, "json")[1]
    copy = import_chat(store, "bob", data)
    before, after = store.all_messages("ann", chat_id), store.all_messages("bob", copy.id)
    assert without_ids(before) == without_ids(after)
    assert [m.text for m in store.path("ann", chat_id)] == [m.text for m in store.path("bob", copy.id)]
    assert not {m.id for m in before} & {m.id for m in after}
    assert copy.title == "Any"
    store.close()


def test_only_a_risk_with_voters_says_what_they_gave() -> None:
    """A file without them is one that an older uqchat wrote, or reads."""
    store = Store("sqlite://")
    chat_id = chat_in(store, answers=("Paris.",))
    answer = store.path("ann", chat_id)[-1]
    tokens = [replace(t, risks=t.risks | {"vote": Risk(0.1, 0.1, None, (0.5, 1.0))}) for t in answer.tokens]
    store.save_answer("ann", answer.id, answer.text, tokens, "done", "stop")
    chat = exported(store, chat_id)
    risks = chat["messages"][1]["tokens"][0]["risks"]
    assert risks["vote"]["voters"] == [0.5, 1.0] and "voters" not in risks["entropy"]
    _set(f"{TOKEN}.risks.vote.voters", [0.5, 1.5])(chat)
    with pytest.raises(InputError, match="voters"):
        import_chat(store, "bob", json.dumps(chat).encode())


def test_an_imported_chat_belongs_to_who_imported_it() -> None:
    store = Store("sqlite://")
    data = export_chat(store, "ann", chat_in(store), "json")[1]
    copy = import_chat(store, "bob", data)
    assert [chat.id for chat in store.list_chats("bob")] == [copy.id]
    assert copy.id not in [chat.id for chat in store.list_chats("ann")]
    with pytest.raises(StoreError):
        store.path("ann", copy.id)


@pytest.mark.parametrize("format", ["json", "csv", "html"])
def test_another_users_chat_is_not_exported(format: str) -> None:
    store = Store("sqlite://")
    chat_id = chat_in(store)
    with pytest.raises(StoreError):
        export_chat(store, "bob", chat_id, format)


def test_another_format_is_refused_with_the_known_ones() -> None:
    store = Store("sqlite://")
    with pytest.raises(InputError, match="json, csv, html; got 'exe'"):
        export_chat(store, "ann", chat_in(store), "exe")


def test_an_answer_still_being_written_is_exported_as_cancelled() -> None:
    store = Store("sqlite://")
    chat_id = chat_in(store)
    row = store.add_message("ann", chat_id, None, "assistant", "", status="streaming")
    store.save_answer("ann", row.id, "half", scored_tokens("half"), "streaming")
    assert exported(store, chat_id)["messages"][-1]["status"] == "cancelled"


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(chat: dict[str, Any]) -> None:
        *way, last = path.split(".")
        place: Any = chat
        for step in way:
            place = place[int(step) if step.isdigit() else step]
        place[int(last) if last.isdigit() else last] = value

    return change


TOKEN = "messages.1.tokens.0"
BAD = {
    "format": _set("format", "other"),
    "version": _set("version", 2),
    "title": _set("title", 5),
    "extra": _set("owner", "ann"),
    "user": _set("messages.0.user", "ann"),
    "role": _set("messages.0.role", "root"),
    "status": _set("messages.1.status", "streaming"),
    "same id": lambda chat: chat["messages"].append(chat["messages"][0]),
    "no parent": _set("messages.0.parent_id", "nobody"),
    "own parent": lambda chat: chat["messages"][0].update(parent_id=chat["messages"][0]["id"]),
    "parent after child": lambda chat: chat["messages"].reverse(),
    "active child": _set("messages.1.active_child", "nobody"),
    "active child of another": lambda chat: chat.update(active_child=chat["messages"][1]["id"]),
    "index": _set(f"{TOKEN}.index", 3),
    "token id": _set(f"{TOKEN}.token_id", -1),
    "bool id": _set(f"{TOKEN}.token_id", True),
    "huge id": _set(f"{TOKEN}.token_id", 2**63),
    "span": _set(f"{TOKEN}.span", [1, 3]),
    "token text": _set(f"{TOKEN}.text", "Rome"),
    "missing token": lambda chat: chat["messages"][1].update(tokens=[]) or chat["messages"][1]["labels"].append({}),
    "logprob": _set(f"{TOKEN}.logprob", 700.0),
    "nan": _set(f"{TOKEN}.entropy", math.nan),
    "text as number": _set(f"{TOKEN}.entropy", "1.0"),
    "risk": _set(f"{TOKEN}.risks.entropy.value", 1.5),
    "label": _set("messages.1.labels.0.end", 500),
    "half label": _set("messages.1.labels.0.end", None),
    "tokens of a question": lambda chat: chat["messages"][0].update(tokens=chat["messages"][1]["tokens"]),
    "date": _set("messages.0.created_at", "yesterday"),
    "year 1": _set("messages.0.created_at", "0001-01-01T00:00:00+14:00"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_inconsistent_file_is_refused_and_nothing_is_imported(name: str) -> None:
    store = Store("sqlite://")
    chat = exported(store, chat_in(store))
    BAD[name](chat)
    with pytest.raises(InputError) as caught:
        import_chat(store, "bob", json.dumps(chat).encode())
    assert len(str(caught.value)) < 700
    assert store.list_chats("bob") == []


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 10**6, b'{"format":"uqchat-chat","version":1}', b"PK\x03\x04"],
)
def test_a_file_of_another_kind_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="imported|exported"):
        import_chat(Store("sqlite://"), "ann", data)


def test_a_file_that_is_too_large_is_refused_before_it_is_read() -> None:
    with pytest.raises(InputError, match="at most 64 MiB"):
        import_chat(Store("sqlite://"), "ann", b" " * (MAX_IMPORT_BYTES + 1))


@given(st.binary(max_size=200))
def test_any_bytes_give_a_clear_message(data: bytes) -> None:
    with pytest.raises(InputError):
        import_chat(SHARED_STORE, "ann", data)


SHARED_STORE = Store("sqlite://")


def test_the_table_has_a_row_per_token_of_every_version() -> None:
    store = Store("sqlite://")
    name, data = export_chat(store, "ann", chat_in(store), "csv")
    rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    assert name == "uqchat-capitals.csv"
    assert ["".join(row["text"] for row in rows if row["version"] == version) for version in "12"] == [
        "Paris.",
        "It is Lyon.",
    ]
    token = scored_tokens("It is Lyon.")[2]
    row = rows[-2]
    assert (row["message"], row["index"], row["start"], row["end"]) == ("3", "2", "5", "11")
    assert int(row["token_id"]) == token.token_id
    assert float(row["logprob"]) == token.logprob
    assert float(row["margin_raw"]) == token.risks["margin"].raw
    assert float(row["entropy_risk"]) == token.risks["entropy"].value


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", " =1+1", "\t=1", "\r=1", "\n=1"])
def test_no_cell_of_text_begins_like_a_formula(text: str) -> None:
    assert safe_cell(text) == f"'{text}"
    assert safe_cell("a" + text) == "a" + text


def test_formulas_in_tokens_models_and_estimator_names_are_defused() -> None:
    store = Store("sqlite://")
    chat_id = store.create_chat("ann").id
    row = store.add_message("ann", chat_id, None, "assistant", "", status="streaming", model="=model")
    tokens = [replace(t, risks={"=name": Risk(0.5, 0.5)}) for t in scored_tokens('=HYPERLINK("http://evil.example")')]
    store.save_answer("ann", row.id, "".join(t.text for t in tokens), tokens, "done")
    table = list(csv.reader(io.StringIO(export_chat(store, "ann", chat_id, "csv")[1].decode("utf-8-sig"))))
    assert not [cell for line in table for cell in line if cell.startswith(("=", "+", "@"))]


def test_the_page_holds_the_exact_texts_of_the_active_branch() -> None:
    store = Store("sqlite://")
    chat_id = chat_in(store, HOSTILE, ("first", HOSTILE + "\n\n  # end"))
    page = export_chat(store, "ann", chat_id, "html")[1].decode()
    bodies = [
        unescape(re.sub(r"<[^>]*>", "", part)) for part in re.findall(r'<div class="uq-text".*?</div>', page, re.S)
    ]
    assert bodies == [HOSTILE, HOSTILE + "\n\n  # end"]
    assert "Version 2 of 2" in page and "uq-b" in page


def test_the_page_has_no_script_and_asks_for_nothing() -> None:
    store = Store("sqlite://")
    chat_id = chat_in(store, HOSTILE, (HOSTILE,))
    store.rename_chat("ann", chat_id, "</title><script>alert(1)</script>")
    name, data = export_chat(store, "ann", chat_id, "html", RiskView(mode="markdown"))
    page = data.decode()
    tags = set(re.findall(r"<\s*([a-zA-Z0-9]+)", page))
    assert not tags & {"script", "img", "iframe", "object", "embed", "link", "form", "base", "svg", "video", "audio"}
    assert not re.search(r"<[^>]*\son\w+\s*=", re.sub(r'"[^"]*"', "", page)), "an attribute may quote anything"
    style = re.search(r"<style>(.*?)</style>", page, re.S)[1]
    assert "@import" not in style and not re.search(r"url\((?![\"']?data:)", style)
    assert "default-src 'none'" in page
    assert name == "uqchat-title-script-alert-1-script.html"


@pytest.mark.parametrize(
    ("title", "stem"),
    [
        ("../../etc/passwd", "etc-passwd"),
        ("CON", "con"),
        ("???", "chat"),
        ("Привет, мир", "привет-мир"),
        ("x" * 200, "x" * 60),
    ],
)
def test_file_names_are_safe_on_every_system(title: str, stem: str) -> None:
    store = Store("sqlite://")
    assert export_chat(store, "ann", store.create_chat("ann", title).id, "json")[0] == f"uqchat-{stem}.json"
