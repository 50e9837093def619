"""The tables, their schema version and how a database is opened. Knows nothing of users' rights: `store.py` does.

A chat is a tree of messages. Each message (and the chat, for its first message) remembers the child that was active
last, so the active branch is found by walking down.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, Text, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.pool import StaticPool
from sqlmodel import Field, Session, SQLModel, create_engine, select

from uqchat.errors import StoreError

SCHEMA_VERSION = 2


def _add_scores(connection: Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE messages ADD COLUMN scores TEXT")


MIGRATIONS: dict[int, Callable[[Connection], None]] = {1: _add_scores}
"""What turns a database of schema n into n + 1, by n; each runs once, inside the transaction that opens it."""


def new_id() -> str:
    """A fresh random id."""
    return uuid.uuid4().hex


class SchemaRow(SQLModel, table=True):
    """One row: the schema that this database has."""

    __tablename__ = "schema_version"
    id: int = Field(default=1, primary_key=True)
    version: int


class ChatRow(SQLModel, table=True):
    """One conversation of one user. Times are Unix seconds."""

    __tablename__ = "chats"
    number: int | None = Field(default=None, primary_key=True)
    id: str = Field(default_factory=new_id, unique=True)
    user: str = Field(index=True)
    title: str = Field(sa_type=Text)
    created_at: float = Field(default_factory=time.time)
    updated_at: float = Field(default_factory=time.time)
    deleted_at: float | None = None
    active_child: str | None = None


class MessageRow(SQLModel, table=True):
    """One message; `number` gives the order of versions (messages with the same parent)."""

    __tablename__ = "messages"
    number: int | None = Field(default=None, primary_key=True)
    id: str = Field(default_factory=new_id, unique=True)
    chat_id: str = Field(foreign_key="chats.id", index=True)
    parent_id: str | None = Field(default=None, foreign_key="messages.id", index=True)
    active_child: str | None = None
    role: str
    text: str = Field(sa_type=Text)
    status: str = Field(default="done", index=True)
    finish_reason: str | None = None
    error: str | None = Field(default=None, sa_type=Text)
    model: str = ""
    dropped_messages: int = 0
    is_example: bool = False
    created_at: float = Field(default_factory=time.time)
    saved_at: float = Field(default_factory=time.time)
    writer: str = ""
    scores: str | None = Field(default=None, sa_type=Text)
    """Of the answer as a whole, as `token_codec` writes them."""


class TokenRow(SQLModel, table=True):
    """The scored tokens of one answer, as `token_codec` writes them."""

    __tablename__ = "token_scores"
    message_id: str = Field(primary_key=True, foreign_key="messages.id")
    data: bytes


class LabelRow(SQLModel, table=True):
    """A person's right or wrong mark on an answer, or on characters [start, end) of it."""

    __tablename__ = "labels"
    number: int | None = Field(default=None, primary_key=True)
    message_id: str = Field(foreign_key="messages.id", index=True)
    is_error: bool
    start: int | None = None
    end: int | None = None


def open_database(url: str) -> Engine:
    """An engine on a database whose tables exist and have this version's schema.

    Raises:
        StoreError: the URL, its driver, the folder or the schema is not usable.
    """
    try:
        engine = _create_engine(url)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise StoreError(
            f"Cannot use {_shown(url)!r} as a database ({error}). UQCHAT_DB takes an SQLAlchemy URL such as "
            "sqlite:////home/me/uqchat.db; other databases need their driver installed with pip."
        ) from error
    try:
        with engine.execution_options(is_write=True).begin() as connection:
            _prepare_schema(connection)
    except DBAPIError as error:
        engine.dispose()
        raise StoreError(explain(error, url)) from error
    except StoreError:
        engine.dispose()
        raise
    return engine


def _create_engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True)
    if is_memory(parsed):
        engine = create_engine(url, poolclass=StaticPool, connect_args={"check_same_thread": False})
    else:
        _make_folder(parsed.database, url)
        engine = create_engine(url)
    _tune_sqlite(engine, use_wal=not is_memory(parsed))
    return engine


def is_memory(url: URL) -> bool:
    """Whether this is an SQLite database that lives in memory only."""
    return url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:")


def _make_folder(database: str, url: str) -> None:
    if database.startswith("file:"):
        return
    try:
        Path(database).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"Cannot make the folder of the database {_shown(url)!r} ({error.strerror}). "
            "Set UQCHAT_DATA_DIR or UQCHAT_DB to a place that you may write to."
        ) from error


def _tune_sqlite(engine: Engine, use_wal: bool) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: object, _record: object) -> None:
        connection.isolation_level = None  # BEGIN is ours: the driver's own would start a writer as a reader
        connection.create_function("lower", 1, _lower, deterministic=True)  # SQLite's own knows only ASCII
        connection.execute("PRAGMA busy_timeout = 10000")
        connection.execute("PRAGMA foreign_keys = ON")
        if use_wal:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        # A writer takes the lock at once: a reader that turns writer half-way is refused without waiting.
        is_write = connection.get_execution_options().get("is_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")


def _lower(text: str | None) -> str | None:
    return None if text is None else str(text).lower()


def _prepare_schema(connection: Connection) -> None:
    tables = [row.__table__ for row in (SchemaRow, ChatRow, MessageRow, TokenRow, LabelRow)]
    SQLModel.metadata.create_all(connection, tables=tables[:1])
    with Session(connection) as session:
        row = session.exec(select(SchemaRow)).first()
        if row is None:
            row = SchemaRow(version=SCHEMA_VERSION)
        if row.version > SCHEMA_VERSION:
            raise StoreError(
                f"The database was written by a newer uqchat (schema {row.version}; this one knows up to "
                f"{SCHEMA_VERSION}). Update uqchat, or set UQCHAT_DB to another database."
            )
        SQLModel.metadata.create_all(connection, tables=tables)
        for version in range(row.version, SCHEMA_VERSION):
            MIGRATIONS[version](connection)
        row.version = SCHEMA_VERSION
        session.add(row)
        session.flush()


def explain(error: DBAPIError, url: str) -> str:
    """One sentence for people about why the database refused, and what helps."""
    reason = str(error.orig)
    for sign, help_text in (
        ("readonly", "The database may only be read. Make the file and its folder writable, or set UQCHAT_DB."),
        ("is full", "The disk or the database is full. Free some space and try again; nothing saved so far is lost."),
        ("locked", "Another program has held the database for more than 10 seconds. Close it and try again."),
        ("not a database", "This file is not an uqchat database. Move it away, or set UQCHAT_DB to another file."),
        ("malformed", "The database file is damaged. Put a backup in its place, or set UQCHAT_DB to another file."),
        ("unable to open", "The database cannot be opened. Check that its folder exists and may be written to."),
        ("I/O error", "The disk reports an error. Check the disk that holds the database."),
    ):
        if sign in reason:
            return f"{help_text} ({_shown(url)}: {reason})"
    return f"The database refused: {reason} ({_shown(url)})"


def _shown(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url
