"""The shell, in this process with a scripted model, and as a real process with the embedded model."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.doubles import ScriptedLanguageModel, scored_token, scored_tokens
from uqchat import __version__, cli_answer, cli_chat, cli_terminal
from uqchat.cli import main
from uqchat.cli_chat import TerminalChat, interrupt_sets
from uqchat.cli_terminal import TokenWriter, colour_depth, printable, tint
from uqchat.config import GenerationConfig
from uqchat.types import Risk

ESTIMATORS = ("entropy", "max_prob", "margin")


class Terminal(io.StringIO):
    """Standard output that says it is a terminal."""

    def isatty(self) -> bool:
        """Yes."""
        return True


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> ScriptedLanguageModel:
    """A scripted model that prints on load, as a careless library would."""
    scripted = ScriptedLanguageModel("Paris is <b>the</b> capital.")
    scripted.score = lambda messages, answer, estimators: ScriptedLanguageModel(answer).answer(messages, estimators)

    def load(_: Any) -> ScriptedLanguageModel:
        print("careless print")
        os.write(1, b"careless C library\n")
        return scripted

    monkeypatch.setattr(cli_answer, "load_language_model", load)
    monkeypatch.setattr(cli_chat, "load_language_model", load)
    return scripted


def test_json_is_the_only_thing_on_stdout(model: ScriptedLanguageModel, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["answer", "Capital of France?", "--json", "--estimator", "entropy,margin"]) == 0
    out, err = capfd.readouterr()
    answer = json.loads(out)
    assert answer["text"] == "Paris is <b>the</b> capital."
    assert list(answer["tokens"][0]["risks"]) == ["entropy", "margin"]
    assert [answer["text"][slice(*t["span"])] for t in answer["tokens"]] == [t["text"] for t in answer["tokens"]]
    assert "careless print" in err and "careless C library" in err


def test_stdout_is_given_back_after_a_command(model: ScriptedLanguageModel, capfd: pytest.CaptureFixture[str]) -> None:
    main(["answer", "Hello", "--json"])
    capfd.readouterr()
    print("mine again", flush=True)
    assert capfd.readouterr().out == "mine again\n"


def test_a_pipe_gets_plain_text_and_the_summary_goes_to_stderr(
    model: ScriptedLanguageModel, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["answer", "Hello"]) == 0
    out, err = capfd.readouterr()
    assert out == "Paris is <b>the</b> capital.\n"
    assert "mean risk: entropy" in err


def test_arguments_reach_the_model(model: ScriptedLanguageModel, tmp_path: Path) -> None:
    file = tmp_path / "messages.json"
    file.write_text(json.dumps([{"role": "user", "content": "One"}, {"role": "assistant", "content": "Two"}]))
    options = "--max-new-tokens 3 --temperature 0.5 --top-p 0.9 --top-k 7 --min-p 0.1 --repetition-penalty 1.1 --seed 4"
    stop = ["--stop", "\n", "--stop", "END"]
    assert main(["answer", "--messages", str(file), "--system", "Be short.", *options.split(), *stop]) == 0
    request = model.requests[0]
    assert [m["role"] for m in request.dicts] == ["system", "user", "assistant"]
    assert request.generation == GenerationConfig(3, 0.5, 0.9, 7, 0.1, 1.1, ("\n", "END"), 4)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["answer"], "either a question or --messages"),
        (["answer", " \n"], "The question is empty"),
        (["answer", "x", "--messages", "y"], "either a question or --messages"),
        (["answer", "--messages", "/nowhere.json"], "cannot be read"),
        (["answer", "x", "--temperature", "-1"], "temperature = -1.0 is not allowed"),
        (["answer", "x", "--max-new-tokens", "many"], "invalid int value"),
        (["answer", "x", "--estimator", "crystal_ball"], "crystal_ball"),
        (["score", "x"], "--answer"),
        (["score", "x", "--answer", "@/nowhere.txt"], "cannot be read"),
        (["dance"], "invalid choice: 'dance'"),
        (["app", "--seed", "3"], "the page has its own controls"),
    ],
)
def test_a_mistake_is_one_json_object_a_sentence_and_exit_code_2(
    model: ScriptedLanguageModel, capfd: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    use_json = arguments[0] != "app"
    assert main([*arguments, "--json"] if use_json else arguments) == 2
    out, err = capfd.readouterr()
    assert says in err and "Traceback" not in err
    if use_json:
        assert says in json.loads(out)["error"]["message"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '"hello"', "[1]", '[{"role": "king", "content": "x"}]', "\ufeff"])
def test_a_messages_file_of_another_shape_is_refused(
    model: ScriptedLanguageModel, tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str
) -> None:
    file = tmp_path / "messages.json"
    file.write_text(text, encoding="utf-8")
    assert main(["answer", "--messages", str(file)]) == 2
    assert capfd.readouterr().out == ""


def test_a_setting_without_meaning_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UQCHAT_PORT", "seven")
    assert main(["models"]) == 2
    assert "UQCHAT_PORT = 'seven'" in capfd.readouterr().err


def test_score_reads_a_file_without_the_newline_editors_add(
    model: ScriptedLanguageModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "answer.txt"
    file.write_text("It is Lyon.\n")
    assert main(["score", "Capital?", "--answer", f"@{file}", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["text"] == "It is Lyon."


def test_ctrl_c_ends_with_130_and_no_traceback(model: ScriptedLanguageModel, capfd: pytest.CaptureFixture[str]) -> None:
    model.fail_after, model.error = 1, KeyboardInterrupt()
    assert main(["answer", "Hello", "--json"]) == 130
    out, err = capfd.readouterr()
    assert json.loads(out)["error"]["kind"] == "KeyboardInterrupt"
    assert "Traceback" not in err


def test_a_reader_that_left_is_no_error(model: ScriptedLanguageModel, capfd: pytest.CaptureFixture[str]) -> None:
    model.fail_after, model.error = 1, BrokenPipeError()
    assert main(["answer", "Hello"]) == 141
    assert capfd.readouterr().err.count("Traceback") == 0


def test_estimators_are_listed_with_level_unit_and_needs(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["estimators", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)["estimators"]
    assert [e["name"] for e in found][:3] == ["entropy", "max_prob", "margin"]
    assert all(e["label"] and e["level"] and e["unit"] and e["value_map"] for e in found)


def test_models_lists_the_embedded_one(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert "embedded" in [choice["name"] for choice in found["known"]]
    assert isinstance(found["cached"], list)


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_version_and_help_load_no_heavy_library(option: str) -> None:
    code = (
        "import sys; from uqchat.cli import main\n"
        f"try: main(['{option}'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'gradio', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
    assert __version__ in done.stdout or option == "--help"


def test_risk_bins_give_five_backgrounds_and_the_riskiest_two_are_underlined() -> None:
    drawn = [tint("x", risk, 256) for risk in (0.1, 0.3, 0.5, 0.7, 1.0)]
    assert len(set(drawn)) == 5
    assert ["\x1b[4;" in text for text in drawn] == [False, False, False, True, True]


def test_a_colour_never_spans_a_line_end() -> None:
    assert "\n" not in tint("a\nb", 0.9, 256).replace("\x1b[0m\n\x1b[", "")


def test_an_answer_cannot_drive_the_terminal() -> None:
    assert printable("a\x1b[2J\x07\x9b31m\n\tb") == "a␛[2J␇\ufffd31m\n\tb"
    for environment_depth in (0, 256):
        out = Terminal()
        TokenWriter(out, "entropy", environment_depth).write(scored_token(0, "\x1b]0;owned\x07"))
        assert "\x1b]" not in out.getvalue()


def test_no_color_and_files_get_no_colour() -> None:
    assert colour_depth(io.StringIO(), {}) == 0
    assert colour_depth(Terminal(), {"NO_COLOR": "1"}) == 0
    assert colour_depth(Terminal(), {"TERM": "xterm"}) == 256
    assert colour_depth(Terminal(), {"COLORTERM": "truecolor"}) == 2**24


def test_a_character_of_several_ids_is_tinted_by_the_largest_risk() -> None:
    out = Terminal()
    writer = TokenWriter(out, "entropy", 256)
    writer.write(scored_token(0, "", risks={"entropy": Risk(0.9, 2.3)}))
    writer.write(scored_token(1, "é", risks={"entropy": Risk(0.1, 0.1)}))
    writer.write(scored_token(1, "é", risks={"entropy": Risk(0.5, 0.7)}))
    assert out.getvalue() == tint("é", 0.9, 256)


def chat(model: ScriptedLanguageModel, *lines: str) -> tuple[TerminalChat, str]:
    """A conversation after these lines, and what it wrote to standard output."""
    out = io.StringIO()
    conversation = TerminalChat(model, out, ESTIMATORS, "entropy", GenerationConfig(temperature=0.7))
    for line in lines:
        conversation.handle(line)
    return conversation, out.getvalue()


def test_chat_sends_the_whole_conversation_and_the_system_message() -> None:
    model = ScriptedLanguageModel("First.", "Second.")
    chat(model, "/system Be brief.", "One?", "Two?")
    assert [m["content"] for m in model.requests[1].dicts] == ["Be brief.", "One?", "First.", "Two?"]


def test_retry_replaces_the_last_answer_with_another_seed() -> None:
    model = ScriptedLanguageModel("First.", "Second.")
    conversation, out = chat(model, "One?", "/retry")
    assert [m.text for m in conversation.messages] == ["One?", "Second."]
    assert [r.generation.seed for r in model.requests] == [0, 1]
    assert out == "First.\nSecond.\n"


def test_undo_takes_back_question_and_answer() -> None:
    conversation, _ = chat(ScriptedLanguageModel("First."), "One?", "/undo")
    assert conversation.messages == []


def test_another_estimator_draws_the_same_answer_again_without_the_model() -> None:
    model = ScriptedLanguageModel("First.")
    _, out = chat(model, "One?", "/estimator margin")
    assert out == "First.\nFirst.\n"
    assert len(model.requests) == 1


@pytest.fixture
def late() -> ScriptedLanguageModel:
    """Its tokens come without a risk first, as where voters read behind the text, and once more with one."""
    tokens = scored_tokens("Paris is\nthe <b>capital</b>.")
    return ScriptedLanguageModel([*(replace(token, risks={}) for token in tokens), *tokens])


@pytest.mark.parametrize(
    ("no_color", "out", "is_drawn_again"),
    [("", Terminal(), True), ("1", Terminal(), False), ("", io.StringIO(), False)],
)
def test_an_answer_whose_risks_come_behind_it_is_drawn_once_more_where_there_are_colours(
    late: ScriptedLanguageModel,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    no_color: str,
    out: io.StringIO,
    is_drawn_again: bool,
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLORTERM", raising=False)
    TerminalChat(late, out, ESTIMATORS, "margin", GenerationConfig()).handle("Capital?")
    plain = "Paris is\nthe <b>capital</b>.\n"
    drawn = "".join(tint(t.text, t.risks["margin"].value, 256) for t in scored_tokens(plain[:-1])) + "\n"
    assert out.getvalue() == (plain + drawn if is_drawn_again else plain)
    err = capfd.readouterr().err
    assert ("came behind the text" in err) == is_drawn_again and "mean risk: margin" in err


def test_an_answer_command_draws_late_risks_too(
    late: ScriptedLanguageModel, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli_answer, "load_language_model", lambda _: late)
    monkeypatch.setattr(cli_terminal, "colour_depth", lambda out: 256)
    assert main(["answer", "Capital?"]) == 0
    out, err = capfd.readouterr()
    assert out.count("Paris") == 2 and out.count("\x1b[0m") > 2 and "came behind the text" in err


def test_an_answer_whose_risks_come_with_it_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_terminal, "colour_depth", lambda out: 256)
    tokens = scored_tokens("Paris is big.", reasoning=1)
    revised = replace(tokens[2], risks={**tokens[2].risks, "margin": Risk(1.0, 1.0)})
    script = [replace(tokens[0], risks={}), *tokens[1:], tokens[0], revised]
    out = Terminal()
    TerminalChat(ScriptedLanguageModel(script), out, ESTIMATORS, "margin", GenerationConfig()).handle("Capital?")
    assert out.getvalue().count("big") == 1


def test_a_saved_chat_can_be_answered_from_the_shell(model: ScriptedLanguageModel, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    chat(ScriptedLanguageModel("First."), "/system Be brief.", "One?", f"/save {file}")
    assert main(["answer", "--messages", str(file)]) == 0
    assert [m["content"] for m in model.requests[0].dicts] == ["Be brief.", "One?", "First."]


def test_ctrl_c_stops_the_answer_and_keeps_the_chat() -> None:
    model = ScriptedLanguageModel("One two three", "Next.", hold_after=1)
    conversation = TerminalChat(model, io.StringIO(), ESTIMATORS, "entropy", GenerationConfig())
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    conversation.handle("Go")
    model.release()
    conversation.handle("And then?")
    assert [m["content"] for m in model.requests[1].dicts] == ["Go", "One", "And then?"]


def test_a_second_ctrl_c_interrupts_as_usual() -> None:
    with pytest.raises(KeyboardInterrupt), interrupt_sets() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_unknown_chat_command_is_told(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["/fly", "/retry", "/undo", "Hi", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    conversation, _ = chat(ScriptedLanguageModel("Hello."))
    conversation.run()
    err = capfd.readouterr().err
    assert "/fly is no command" in err and "no question yet" in err and "nothing to take back" in err
    assert len(conversation.messages) == 2


def run_shell(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """`python -m uqchat` as a process of its own."""
    command = [sys.executable, "-m", "uqchat", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


@pytest.mark.model
def test_the_embedded_model_answers_from_the_shell() -> None:
    done = run_shell("answer", "What is the capital of France?", "--json", "--estimator", "entropy,max_prob,margin")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert "Paris" in answer["text"]
    assert "".join(token["text"] for token in answer["tokens"]) == answer["text"]
    for token in answer["tokens"]:
        assert answer["text"][slice(*token["span"])] == token["text"]
        assert all(0 <= risk["value"] <= 1 for risk in token["risks"].values())
    assert list(answer["risks"]) == ["entropy", "max_prob", "margin"]


@pytest.mark.model
def test_scoring_the_models_own_answer_gives_its_own_risks() -> None:
    options = ("--dtype", "float32", "--json")
    question = "What is the capital of France?"
    answered = json.loads(run_shell("answer", question, *options).stdout)
    done = run_shell("score", question, "--answer", answered["text"], *options)
    scored = json.loads(done.stdout)
    assert scored["text"] == answered["text"]
    given = [token for token in answered["tokens"] if token["text"]]  # a given text has no end token
    for mine, theirs in zip(scored["tokens"], given, strict=True):
        assert mine["token_id"] == theirs["token_id"]
        assert mine["logprob"] == pytest.approx(theirs["logprob"], abs=1e-4)


@pytest.mark.model
def test_a_reader_that_leaves_a_pipe_early_ends_the_answer_quietly() -> None:
    command = [sys.executable, "-m", "uqchat", "answer", "Tell me a very long story.", "--max-new-tokens", "2000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.read(10)
        process.stdout.close()
        err = process.stderr.read().decode()
    assert process.returncode == 141, err
    assert "Traceback" not in err and "terminate" not in err


@pytest.mark.model
def test_ctrl_c_during_a_real_answer_leaves_the_partial_text() -> None:
    command = [sys.executable, "-m", "uqchat", "answer", "Tell me a very long story.", "--max-new-tokens", "2000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        start = process.stdout.read(10)
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate()
    assert process.returncode == 130, err
    assert start + rest
    assert b"Traceback" not in err and b"terminate" not in err


@pytest.mark.model
def test_a_terminal_chat_reads_from_a_pipe() -> None:
    done = run_shell("chat", "--max-new-tokens", "4", input="What is the capital of France?\n/undo\n/quit\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "Taken back" in done.stderr
