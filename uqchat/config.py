"""Settings of the app (environment, prefix UQCHAT_) and of one generation. Knows no model and no interface."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, fields
from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from uqchat.errors import InputError


def is_space() -> bool:
    """Whether this process runs on Hugging Face Spaces."""
    return os.environ.get("SYSTEM") == "spaces"


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """How to choose the next token. Nothing here changes a score: scores come from the raw logits."""

    max_new_tokens: int = 256
    """Tokens at most, the end token included; 0 or more."""
    temperature: float = 0.0
    """0 is greedy; above 0 the logits are divided by it."""
    top_p: float = 1.0
    """Smallest set of tokens with at least this probability; (0, 1]."""
    top_k: int = 0
    """Only the k likeliest tokens; 0 is off."""
    min_p: float = 0.0
    """Only tokens at least this share as likely as the likeliest; [0, 1]."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens of prompt and answer less likely (CTRL, section 4.1); above 0."""
    stop_strings: tuple[str, ...] = ()
    """The answer ends before the first of these."""
    seed: int = 0
    """Same seed, same draws, and so the same answer, but for the rounding of a 16-bit number format; 0 to 2^63 - 1."""

    def __post_init__(self) -> None:
        """Refuse values outside their range. Raises InputError."""
        object.__setattr__(self, "stop_strings", tuple(self.stop_strings))
        for name, is_allowed, allowed in (
            ("max_new_tokens", self.max_new_tokens >= 0, "0 or more"),
            ("temperature", 0 <= self.temperature <= 100, "0 (greedy) to 100"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("min_p", 0 <= self.min_p <= 1, "0 (off) to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty <= 100, "above 0, at most 100"),
            ("seed", 0 <= self.seed < 2**63, "0 to 2^63 - 1"),
            ("stop_strings", all(isinstance(s, str) and s for s in self.stop_strings), "non-empty strings"),
        ):
            if not is_allowed:
                raise InputError(f"{name} = {getattr(self, name)!r} is not allowed; it must be {allowed}.")


GENERATION_FIELDS = tuple(f.name for f in fields(GenerationConfig))


class AppConfig(BaseSettings):
    """Settings of the app; each is read from the environment variable UQCHAT_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="UQCHAT_", extra="ignore", frozen=True, protected_namespaces=())

    model: str = Field("embedded", description="Model to open with: `embedded`, a Hub id, a folder or a GGUF file.")
    device: str | None = Field(None, description="`cpu`, `cuda`, `mps`; empty chooses.")
    dtype: str | None = Field(None, description="`float32`, `bfloat16`, `float16`; empty chooses.")
    quantization: str | None = Field(None, description="`int8`, `bnb-8bit`, `bnb-4bit`; empty is none.")
    threads: int = Field(0, ge=0, description="CPU threads of the model; 0 leaves it to torch.")
    trust_remote_code: bool = Field(
        False, description="Run Python code that a Hub model brings. Only for repositories you have read."
    )
    allow_model_switch: bool = Field(
        default_factory=lambda: not is_space(), description="Whether the page may load another model; off on a Space."
    )
    host: str = Field(
        default_factory=lambda: "0.0.0.0" if is_space() else "127.0.0.1", description="Address to listen on."
    )
    port: int = Field(7860, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    cache_dir: Path = Field(
        default_factory=lambda: Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "uqchat",
        description="Folder for the converted embedded model and for exports.",
    )
    estimators_dir: Path = Field(
        default_factory=lambda data: data["cache_dir"] / "estimators",
        description="Folder for estimators trained here; those that ship are found without it.",
    )
    data_dir: Path = Field(
        default_factory=lambda: Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local/share")) / "uqchat",
        description="Folder for the database and the generated secret.",
    )
    policies_dir: Path = Field(
        default_factory=lambda data: data["data_dir"] / "policies",
        description="Folder for the thresholds that chats can be made to obey.",
    )
    db: str = Field("", description="SQLAlchemy URL of the database; empty is `uqchat.db` in the data folder.")
    history: bool = Field(True, description="Whether chats are kept; off, nothing of them is written to disk.")
    secret: str = Field("", description="Encrypts the browser's user id; empty generates one into the data folder.")
    auth: str = Field("", description="`name:password,name:password` turns on a login.")
    max_queue: int = Field(32, ge=1, description="Requests that may wait for the model.")
    max_prompt_chars: int = Field(20_000, ge=1, description="Characters allowed in one message.")

    @property
    def database_url(self) -> str:
        """The database to open; in memory when chats are not kept."""
        if not self.history:
            return "sqlite://"
        return self.db or f"sqlite:///{self.data_dir / 'uqchat.db'}"

    def browser_secret(self) -> str:
        """The configured secret, or one kept in the data folder so that it survives a restart."""
        if self.secret:
            return self.secret
        if not self.history:
            return secrets.token_hex(32)
        path = self.data_dir / "secret"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_suffix(f".{os.getpid()}")
            fresh.touch(mode=0o600)
            fresh.write_text(secrets.token_hex(32))
            try:
                os.link(fresh, path)  # whoever comes first wins; nobody reads a half-written file
            except FileExistsError:
                pass
            fresh.unlink()
        return path.read_text().strip()

    def users(self) -> list[tuple[str, str]]:
        """Login names and passwords. Raises InputError on an entry without a colon."""
        pairs = [entry.strip().partition(":") for entry in self.auth.split(",") if entry.strip()]
        if any(not name or not password for name, _, password in pairs):
            raise InputError("UQCHAT_AUTH must look like name:password,name:password.")
        return [(name, password) for name, _, password in pairs]


def read_config() -> AppConfig:
    """The settings of this process. Raises InputError that names the variable whose value is not allowed."""
    try:
        return AppConfig()
    except ValidationError as error:
        first = error.errors()[0]
        name = f"UQCHAT_{'_'.join(map(str, first['loc'])).upper()}"
        raise InputError(f"{name} = {first['input']!r} is not allowed: {first['msg']}.") from error
