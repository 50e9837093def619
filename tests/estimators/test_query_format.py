"""The query's words are the published ones, its replies are single tokens of every kind of tokenizer, it is kept."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.tiny import byte_tokenizer
from uqchat.errors import InputError
from uqchat.estimators.query_format import FORMATS, label_id, make_query, query_ids

PUBLISHED = "\n\nIs the proposed answer correct?\nChoices:\n(i): no\n(ii): yes\nAnswer:"  # calibration-tuning, 2b7a70b
TEXT = ["Is the proposed answer correct? Choices: (i): no (ii): yes Answer: i ii iii iv a b Henry ii of skiing"] * 9


def wrapped(backend: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def byte_bpe() -> PreTrainedTokenizerFast:
    """As GPT-2, Llama 3, Qwen and SmolLM: merges over bytes, the space belongs to the word after it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return wrapped(backend, eos_token="<end>")


def sentence_piece(end: bool = False) -> PreTrainedTokenizerFast:
    """As Llama 2 and Mistral: a word begins with a boundary mark, also at the start of the text; a first id."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"]))
    template = "<s> $A </s>" if end else "<s> $A"
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 1), ("</s>", 2)])
    return wrapped(backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def unigram() -> PreTrainedTokenizerFast:
    """As T5 and Gemma 3n: pieces by likelihood; the boundary mark is a token of its own."""
    pieces = [("<unk>", 0.0), ("▁", -2.0), *((c, -4.0) for c in "abcdefghijklmnopqrstuvwxyz():?AIC"), ("ii", -3.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return wrapped(backend, unk_token="<unk>")


def without_letters() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "yes": 1}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return wrapped(backend, unk_token="<unk>")


def test_the_first_wording_is_the_published_one_to_the_byte() -> None:
    assert FORMATS[0].text == PUBLISHED


@pytest.mark.parametrize("tokenizer", [byte_bpe(), sentence_piece(), sentence_piece(end=True), unigram()], ids=str)
def test_the_replies_are_two_single_tokens_of_every_kind_of_tokenizer(tokenizer: Any) -> None:
    query = make_query(tokenizer)
    assert query.format.name == "roman_choice"
    assert query.no_id != query.yes_id
    assert [tokenizer.decode([i]).strip() for i in query.label_ids] == ["i", "ii"]


def test_the_replies_are_the_last_ids_of_the_labels_alone_as_published() -> None:
    """SentencePiece: the word-initial pieces. Byte BPE: the pieces without a space."""
    pieces, merges = sentence_piece(), byte_bpe()
    assert pieces.convert_ids_to_tokens(list(make_query(pieces).label_ids)) == ["▁i", "▁ii"]
    assert merges.convert_ids_to_tokens(list(make_query(merges).label_ids)) == ["i", "ii"]


def test_a_vocabulary_without_a_token_for_ii_is_asked_with_letters() -> None:
    query = make_query(byte_tokenizer())
    assert query.format.name == "letter_choice"
    assert byte_tokenizer().decode(list(query.label_ids)) == "ab"


def test_replies_that_cannot_be_told_apart_are_refused() -> None:
    assert label_id(without_letters(), "i") is None  # both would be the unknown token
    with pytest.raises(InputError, match="no single tokens for the replies"):
        make_query(without_letters())
    with pytest.raises(InputError, match=r"no single tokens for the replies of the query \(roman_choice\)"):
        make_query(byte_tokenizer(), format_name="roman_choice")


@pytest.mark.parametrize(
    ("changes", "message"), [({"format_name": "x"}, "format 'x'"), ({"layout": "y"}, "layout 'y'")]
)
def test_unknown_settings_are_refused_with_the_known_ones(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"Unknown query {message}. Known: "):
        make_query(byte_tokenizer(), **changes)


@pytest.mark.parametrize("window", [400, 120, 90, 70])
@pytest.mark.parametrize("layout", ["chat", "text"])
def test_too_long_an_input_loses_its_beginning_and_never_the_query(layout: Any, window: int) -> None:
    tokenizer = byte_tokenizer()
    query = make_query(tokenizer, layout)
    asked = query.format.text  # 67 bytes
    prompt, answer = tokenizer("<|user|>" + "q" * 150).input_ids, tokenizer("x" * 60 + "end").input_ids
    ids = query_ids(query, tokenizer, prompt, answer, window, "q" * 150)
    whole = query_ids(query, tokenizer, prompt, answer, 10_000, "q" * 150)
    assert len(ids) == min(window, len(whole))
    assert tokenizer.decode(ids).endswith(asked)
    assert ids[0] == whole[0]  # what models lean on
    assert ids[1:] == whole[len(whole) - len(ids) + 1 :]


def test_a_window_smaller_than_the_query_is_refused() -> None:
    tokenizer = byte_tokenizer()
    query = make_query(tokenizer)
    with pytest.raises(InputError, match="query takes 67 tokens and this model's context window holds 64"):
        query_ids(query, tokenizer, (1, 2), (3,), 64)


def test_the_plain_text_layout_is_the_published_rendering() -> None:
    """Rendered text of one record: question, cue, one space, answer; then the query, and no id after its last colon."""
    tokenizer = sentence_piece(end=True)
    query = make_query(tokenizer, "text")
    answer = tokenizer(" i of ski ", add_special_tokens=False).input_ids
    ids = query_ids(query, tokenizer, (), answer, 1000, " Henry ii? ")
    expected = tokenizer("Question: Henry ii?\nAnswer: i of ski" + PUBLISHED).input_ids[:-1]
    assert list(ids) == expected


@pytest.mark.model
def test_the_embedded_model_reads_the_published_wording(embedded: Any) -> None:
    query = make_query(embedded.tokenizer)
    assert embedded.tokenizer.convert_ids_to_tokens(list(query.label_ids)) == ["i", "ii"]
