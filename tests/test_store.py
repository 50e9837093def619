"""Claims about the store: the tree, whose chat it is, many threads, dead processes, refusals of the database."""

from __future__ import annotations

import inspect
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.doubles import scored_tokens, wait_until
from uqchat.errors import InputError, StoreError
from uqchat.store import Label, Store
from uqchat.store_tables import SCHEMA_VERSION
from uqchat.token_codec import AnswerScores, decode_tokens, encode_tokens
from uqchat.types import Risk

TEXT = "Paris is the capital."


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """One in memory, one in a file."""
    opened = Store("sqlite://" if request.param == "memory" else f"sqlite:///{tmp_path / 'sub folder' / 'chats.db'}")
    yield opened
    opened.close()


@pytest.fixture
def memory() -> Iterator[Store]:
    """Only the one in memory, for what does not depend on the kind of database."""
    opened = Store("sqlite://")
    yield opened
    opened.close()


def ask(
    store: Store, user: str = "ann", chat_id: str | None = None, question: str = "Capital?"
) -> tuple[str, str, str]:
    """Adds a question and its answer at the end; ids of the chat, the question and the answer."""
    chat_id = chat_id or store.create_chat(user).id
    path = store.path(user, chat_id)
    asked = store.add_message(user, chat_id, path[-1].id if path else None, "user", question)
    answer = answer_to(store, asked.id, chat_id, user)
    return chat_id, asked.id, answer


def answer_to(store: Store, question_id: str, chat_id: str, user: str = "ann", text: str = TEXT) -> str:
    """Adds another answer below a question."""
    answer = store.add_message(user, chat_id, question_id, "assistant", "", status="streaming", model="m")
    store.save_answer(user, answer.id, text, scored_tokens(text), "done", "stop", dropped_messages=2)
    return answer.id


def texts(store: Store, chat_id: str, user: str = "ann") -> list[str]:
    """The texts of the active branch."""
    return [message.text for message in store.path(user, chat_id)]


def test_an_answer_comes_back_as_it_was_saved(store: Store) -> None:
    chat_id, _, answer_id = ask(store)
    message = store.path("ann", chat_id)[-1]
    assert message == store.get_message("ann", answer_id)
    assert (message.text, message.tokens) == (TEXT, scored_tokens(TEXT))
    assert (message.status, message.finish_reason, message.model, message.dropped_messages) == ("done", "stop", "m", 2)


def test_what_estimators_say_of_the_whole_answer_comes_back_as_it_was_saved(store: Store) -> None:
    _, _, answer = ask(store)
    assert store.get_message("ann", answer).scores == AnswerScores()
    scores = AnswerScores({"rauq": Risk(0.25, 0.1 + 0.2, "facts")}, {"rauq": "a poem"}, {"query": "too long"})
    store.save_answer("ann", answer, TEXT, (), "done", scores=scores)
    assert store.get_message("ann", answer).scores == scores


def test_another_answer_becomes_active_and_the_old_one_stays_reachable(store: Store) -> None:
    chat_id, question, first = ask(store)
    second = answer_to(store, question, chat_id, text="Lyon.")
    assert texts(store, chat_id) == ["Capital?", "Lyon."]
    shown = store.path("ann", chat_id)[-1]
    assert (shown.version, shown.version_count) == (2, 2)
    assert store.select_version("ann", second, -1) == first
    assert texts(store, chat_id) == ["Capital?", TEXT]


def test_a_step_past_the_first_or_last_version_stops_there(store: Store) -> None:
    chat_id, question, first = ask(store)
    second = answer_to(store, question, chat_id)
    assert store.select_version("ann", second, 1) == second
    assert store.select_version("ann", second, -5) == first


def test_a_version_brings_back_the_messages_last_used_below_it(store: Store) -> None:
    chat_id, question, first = ask(store)
    ask(store, chat_id=chat_id, question="And of Italy?")
    other = answer_to(store, question, chat_id, text="Lyon.")
    assert len(texts(store, chat_id)) == 2
    store.select_version("ann", other, -1)
    assert texts(store, chat_id) == ["Capital?", TEXT, "And of Italy?", TEXT]


def test_step_back_returns_the_question_and_deletes_nothing(store: Store) -> None:
    chat_id, question, _ = ask(store)
    ask(store, chat_id=chat_id, question="And of Italy?")
    assert store.step_back("ann", chat_id) == "And of Italy?"
    assert texts(store, chat_id) == ["Capital?", TEXT]
    assert store.step_back("ann", chat_id) == "Capital?"
    assert store.step_back("ann", chat_id) is None
    assert len(store.all_messages("ann", chat_id)) == 4
    _, again, _ = ask(store, chat_id=chat_id, question="Of Spain?")
    assert store.get_message("ann", again).version == 2
    store.select_version("ann", again, -1)
    assert texts(store, chat_id) == ["Capital?", TEXT]  # as far as it went before it was taken back


def test_branch_to_ends_at_a_message_that_is_not_active(store: Store) -> None:
    chat_id, question, first = ask(store)
    answer_to(store, question, chat_id, text="Lyon.")
    assert [message.id for message in store.branch_to("ann", first)] == [question, first]


def test_a_parent_in_another_chat_is_refused(store: Store) -> None:
    _, question, _ = ask(store)
    with pytest.raises(StoreError, match="another chat"):
        store.add_message("ann", store.create_chat("ann").id, question, "user", "x")


def test_a_deleted_chat_is_unknown_until_it_is_restored(store: Store) -> None:
    chat_id, question, answer = ask(store)
    store.delete_chat("ann", chat_id)
    assert store.list_chats("ann") == []
    for call in (lambda: store.path("ann", chat_id), lambda: store.get_message("ann", answer)):
        with pytest.raises(StoreError):
            call()
    store.save_answer("ann", answer, "still saved", (), "done")  # an answer may end after its chat was deleted
    assert store.restore_chat("ann", chat_id).id == chat_id
    assert texts(store, chat_id) == ["Capital?", "still saved"]


def test_purging_erases_deleted_chats_and_only_those(store: Store) -> None:
    gone, _, answer = ask(store)
    kept, _, _ = ask(store)
    store.set_label("ann", answer, True)
    store.delete_chat("ann", gone)
    assert store.purge_deleted() == 0  # there is a day to change one's mind
    assert store.purge_deleted(older_than_s=0) == 1
    with pytest.raises(StoreError):
        store.restore_chat("ann", gone)
    assert len(texts(store, kept)) == 2


def test_labels_are_kept_replaced_and_taken_away(store: Store) -> None:
    _, _, answer = ask(store)
    store.set_label("ann", answer, True)
    store.set_label("ann", answer, True, 0, 5)
    store.set_label("ann", answer, False)
    assert set(store.get_message("ann", answer).labels) == {Label(True, 0, 5), Label(False)}
    store.set_label("ann", answer, None, 0, 5)
    store.set_label("ann", answer, None)
    assert store.get_message("ann", answer).labels == ()


@pytest.mark.parametrize("span", [(-1, 3), (3, 3), (5, 2), (0, len(TEXT) + 1), (None, 3), (0, None)])
def test_a_label_outside_the_text_is_refused(memory: Store, span: tuple[int | None, int | None]) -> None:
    _, _, answer = ask(memory)
    with pytest.raises(InputError, match="at least one character"):
        memory.set_label("ann", answer, True, *span)


def test_only_a_finished_answer_can_be_labelled(store: Store) -> None:
    chat_id, question, _ = ask(store)
    running = store.add_message("ann", chat_id, question, "assistant", "", status="streaming")
    for message_id in (question, running.id):
        with pytest.raises(InputError, match="finished answer"):
            store.set_label("ann", message_id, True)


CALLS: dict[str, Callable[[Store, str, str, str], Any]] = {
    "get_chat": lambda s, u, chat, answer: s.get_chat(u, chat),
    "rename_chat": lambda s, u, chat, answer: s.rename_chat(u, chat, "mine"),
    "delete_chat": lambda s, u, chat, answer: s.delete_chat(u, chat),
    "restore_chat": lambda s, u, chat, answer: s.restore_chat(u, chat),
    "path": lambda s, u, chat, answer: s.path(u, chat),
    "all_messages": lambda s, u, chat, answer: s.all_messages(u, chat),
    "branch_to": lambda s, u, chat, answer: s.branch_to(u, answer),
    "get_message": lambda s, u, chat, answer: s.get_message(u, answer),
    "add_message": lambda s, u, chat, answer: s.add_message(u, chat, None, "user", "x"),
    "save_answer": lambda s, u, chat, answer: s.save_answer(u, answer, "x", (), "done"),
    "select_version": lambda s, u, chat, answer: s.select_version(u, answer, 1),
    "step_back": lambda s, u, chat, answer: s.step_back(u, chat),
    "set_label": lambda s, u, chat, answer: s.set_label(u, answer, True),
}
NO_ID_OF_OTHERS = {
    *("create_chat", "list_chats", "add_tree", "purge_deleted", "mark_interrupted", "close"),
    *("count_marks", "marked_answers"),  # tests/test_marks.py
}


def test_every_public_method_is_covered_by_the_test_of_rights() -> None:
    public = {name for name, _ in inspect.getmembers(Store, inspect.isfunction) if not name.startswith("_")}
    assert public == set(CALLS) | NO_ID_OF_OTHERS


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("user", ["bob", "ANN", "%", ""])
def test_another_users_id_is_unknown_and_changes_nothing(memory: Store, name: str, user: str) -> None:
    chat_id, _, answer = ask(memory)
    before = (memory.get_chat("ann", chat_id), memory.all_messages("ann", chat_id))
    with pytest.raises(StoreError):
        CALLS[name](memory, user, chat_id, answer)
    assert (memory.get_chat("ann", chat_id), memory.all_messages("ann", chat_id)) == before


def test_a_list_holds_only_the_users_own_chats(memory: Store) -> None:
    ask(memory, "ann", question="secret")
    ask(memory, "bob", question="other")
    assert [chat.message_count for chat in memory.list_chats("bob")] == [2]
    assert memory.list_chats("bob", "secret") == []
    with pytest.raises(StoreError, match="another chat|does not exist"):
        memory.add_message(
            "bob", memory.list_chats("bob")[0].id, memory.path("ann", memory.list_chats("ann")[0].id)[0].id, "user", "x"
        )


@pytest.mark.parametrize(
    "text", ["100 %", "a_b", "back\\slash", "sl/ash", "it's", '"', "[x]", "ПРИВЕТ", "Straße", "日本"]
)
def test_search_takes_every_character_literally(memory: Store, text: str) -> None:
    wanted, _, _ = ask(memory, question=f"before {text} after")
    ask(memory, question="100 and axb, backslash, slash, its, x")
    for search in (text, text.lower(), f" {text} "):
        assert [chat.id for chat in memory.list_chats("ann", search)] == [wanted]


def test_search_finds_titles_answers_and_inactive_versions(store: Store) -> None:
    chat_id, question, _ = ask(store)
    answer_to(store, question, chat_id, text="Lyon.")
    titled = store.create_chat("ann", "Travel plans")
    assert [chat.id for chat in store.list_chats("ann", "TRAVEL")] == [titled.id]
    assert [chat.id for chat in store.list_chats("ann", "paris is")] == [chat_id]
    assert len(store.list_chats("ann", "  ")) == 2


def test_the_last_used_chat_comes_first(store: Store) -> None:
    first, second = store.create_chat("ann").id, store.create_chat("ann").id
    assert [chat.id for chat in store.list_chats("ann")] == [second, first]
    ask(store, chat_id=first)
    assert [chat.id for chat in store.list_chats("ann")] == [first, second]


@pytest.mark.parametrize(
    ("title", "kept"),
    [
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),  # escaped where it is drawn
        ("'; DROP TABLE chats; --", "'; DROP TABLE chats; --"),
        ("two\nlines\tand\x07 bell", "two lines and bell"),
        ("evil\u202egpj.exe", "evilgpj.exe"),
        ("\ud800 half", "\ufffd half"),
        ("x" * 5000, "x" * 200),
        ("👩‍👧 family", "👩‍👧 family"),
    ],
)
def test_hostile_titles_become_one_harmless_line(memory: Store, title: str, kept: str) -> None:
    assert memory.rename_chat("ann", memory.create_chat("ann").id, title).title == kept


@pytest.mark.parametrize("title", ["", " \n", "\x00\x07"[1:], "\u202e"])
def test_a_title_without_a_visible_character_is_refused(memory: Store, title: str) -> None:
    with pytest.raises(InputError, match="visible"):
        memory.create_chat("ann", title)


def test_text_that_no_database_keeps_is_replaced_and_spans_stay(store: Store) -> None:
    chat_id, question, _ = ask(store)
    assert store.add_message("ann", chat_id, None, "user", "a\0b\ud800c").text == "a\ufffdb\ufffdc"


@given(st.text(), st.integers(0, 3))
def test_tokens_come_back_equal_for_any_text(text: str, reasoning: int) -> None:
    tokens = scored_tokens(text, reasoning=reasoning)
    assert decode_tokens(encode_tokens(tokens)) == tokens


def test_eight_threads_lose_nothing(store: Store) -> None:
    chats = [store.create_chat(f"user{i % 4}").id for i in range(8)]

    def work(i: int) -> None:
        for _ in range(10):
            ask(store, f"user{i % 4}", chats[i])
            store.list_chats(f"user{i % 4}", "capital")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert [len(store.path(f"user{i % 4}", chats[i])) for i in range(8)] == [20] * 8


def test_eight_threads_on_one_chat_keep_one_tree(store: Store) -> None:
    chat_id, question, _ = ask(store)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: [answer_to(store, question, chat_id) for _ in range(5)], range(8)))
    versions = [message.version for message in store.all_messages("ann", chat_id) if message.role == "assistant"]
    assert versions == list(range(1, 42))


def test_closing_keeps_partial_text_as_cancelled(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'chats.db'}"
    store = Store(url)
    chat_id, question, _ = ask(store)
    answer = store.add_message("ann", chat_id, question, "assistant", "", status="streaming")
    store.save_answer("ann", answer.id, "half", scored_tokens("half", has_end=False), "streaming")
    store.close()
    kept = Store(url).get_message("ann", answer.id)
    assert (kept.text, kept.status, len(kept.tokens)) == ("half", "cancelled", 1)


WRITER = """
import sys, time
from tests.doubles import scored_tokens
from uqchat.store import Store
store = Store(sys.argv[1])
chat = store.create_chat("ann").id
question = store.add_message("ann", chat, None, "user", "Why?")
answer = store.add_message("ann", chat, question.id, "assistant", "", status="streaming")
store.save_answer("ann", answer.id, "half an", scored_tokens("half an", has_end=False), "streaming")
print(answer.id, flush=True)
time.sleep(600)
"""


def test_an_answer_is_interrupted_only_when_its_process_is_dead(tmp_path: Path) -> None:
    """Two app processes on one database: a starting one must not cancel what the living one writes."""
    url = f"sqlite:///{tmp_path / 'chats.db'}"
    store = Store(url)
    command = [sys.executable, "-c", WRITER, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as process:
        answer = process.stdout.readline().strip()
        assert store.mark_interrupted() == 0
        assert store.get_message("ann", answer).status == "streaming"
        process.send_signal(signal.SIGKILL)
    assert store.get_message("ann", answer).status == "cancelled"  # judged at every reading
    assert store.mark_interrupted() == 1
    kept = store.get_message("ann", answer)
    assert (kept.text, kept.status, kept.finish_reason, len(kept.tokens)) == ("half an", "cancelled", "cancelled", 2)


def test_a_writer_elsewhere_counts_as_alive_for_half_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(f"sqlite:///{tmp_path / 'chats.db'}")
    chat_id, question, _ = ask(store)
    monkeypatch.setattr("uqchat.store_writer.socket.gethostname", lambda: "another-machine")
    answer = store.add_message("ann", chat_id, question, "assistant", "", status="streaming").id
    assert store.mark_interrupted() == 0
    monkeypatch.setattr("uqchat.store_writer.HEARTBEAT_S", -1.0)
    store._writer = "elsewhere|1|1|x"
    store.save_answer("ann", answer, "half", (), "streaming")
    assert store.mark_interrupted() == 1


def test_a_newer_schema_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    Store(f"sqlite:///{path}").close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE schema_version SET version = ?", (SCHEMA_VERSION + 1,))
    with pytest.raises(StoreError, match=r"newer uqchat .*Update uqchat, or set UQCHAT_DB"):
        Store(f"sqlite:///{path}")


def test_an_older_schema_is_brought_up_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "chats.db"
    Store(f"sqlite:///{path}").close()
    seen: list[int] = []
    monkeypatch.setattr("uqchat.store_tables.SCHEMA_VERSION", SCHEMA_VERSION + 2)
    later = (SCHEMA_VERSION, SCHEMA_VERSION + 1)
    steps = {version: lambda _, version=version: seen.append(version) for version in later}
    monkeypatch.setattr("uqchat.store_tables.MIGRATIONS", steps)
    Store(f"sqlite:///{path}").close()
    Store(f"sqlite:///{path}").close()
    assert seen == list(later)


def test_chats_of_the_first_schema_are_kept_and_have_no_scores_of_whole_answers(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    first = Store(f"sqlite:///{path}")
    chat_id, _, _ = ask(first)
    first.close()
    with sqlite3.connect(path) as connection:  # what the first schema lacks
        connection.execute("ALTER TABLE messages DROP COLUMN scores")
        connection.execute("UPDATE schema_version SET version = 1")
    second = Store(f"sqlite:///{path}")
    answer = second.path("ann", chat_id)[-1]
    assert (answer.text, len(answer.tokens) > 0, answer.scores) == (TEXT, True, AnswerScores())
    second.close()


def test_two_stores_may_open_a_new_database_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'chats.db'}"
    barrier = threading.Barrier(6)

    def open_one(_: int) -> Store:
        barrier.wait()
        return Store(url)

    with ThreadPoolExecutor(6) as pool:
        stores = list(pool.map(open_one, range(6)))
    stores[0].create_chat("ann")
    assert all(len(store.list_chats("ann")) == 1 for store in stores)


def test_a_full_database_says_so_and_what_is_saved_stays(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'chats.db'}")
    chat_id, _, answer = ask(store)
    with store._sessions.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
    with pytest.raises(StoreError, match="Free some space"):
        store.save_answer("ann", answer, "x" * 10**6, (), "done")
    assert texts(store, chat_id) == ["Capital?", TEXT]


def test_a_read_only_database_can_be_read_and_says_why_it_is_not_written(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'chats.db'}")
    chat_id, _, _ = ask(store)
    with store._sessions.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only = ON")  # a file's mode would not stop root
    with pytest.raises(StoreError, match="may only be read"):
        ask(store, chat_id=chat_id)
    assert texts(store, chat_id) == ["Capital?", TEXT]


def test_a_locked_database_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "chats.db"
    store = Store(f"sqlite:///{path}")
    with store._sessions.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout = 20")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match="Another program"):
        store.create_chat("ann")
    other.execute("ROLLBACK")
    store.create_chat("ann")
    assert len(store.list_chats("ann")) == 1


@pytest.mark.parametrize("url", ["no url", "sqlite+nothing://", "nonsense://x", "mysql+pymysql://u:hunter2@h/d"])
def test_an_unusable_url_is_refused_without_showing_the_password(url: str) -> None:
    with pytest.raises(StoreError, match="UQCHAT_DB") as caught:
        Store(url)
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes " * 1000)
    with pytest.raises(StoreError, match="not an uqchat database"):
        Store(f"sqlite:///{path}")
    assert path.read_text().startswith("my notes")


def test_the_folder_of_a_database_may_be_impossible(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="UQCHAT_DATA_DIR"):
        Store(f"sqlite:///{tmp_path / 'file' / 'x' / 'chats.db'}")


def test_a_store_in_memory_is_one_for_all_threads() -> None:
    store = Store("sqlite://")
    chat = store.create_chat("ann").id
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.append(store.get_chat("ann", chat).id))
    thread.start()
    wait_until(lambda: bool(seen))
    assert seen == [chat]
