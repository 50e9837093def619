"""Public data sets by name: where each lies on the Hub and what its columns mean. Short declarations, no copied rows.

The names of the sets that calibration-tuning, luh and the Bayesian prompt ensembles were trained or evaluated on
(specs of those projects; their licences are their own). Reading needs the package `datasets` and the network.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from trainers.questions import Columns, Question, as_questions
from uqchat.errors import InputError


@dataclass(frozen=True, slots=True)
class Recipe:
    """One set on the Hub.

    `question` and the entries of `options` are texts with {columns}; `answers` is a column; `index` is the column of
    the right option, counted from `first`, or its letter. `names` are options that are the same for every row.
    """

    path: str
    question: str
    config: str | None = None
    answers: str = ""
    options: tuple[str, ...] = ()
    choices: str = ""
    names: tuple[str, ...] = ()
    index: str = ""
    first: int = 0
    train: str = "train"
    evaluation: str = "validation"
    category: str = ""

    def row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row of the set in our columns; an index that is no option stays one, and the row is left out later."""
        shown: dict[str, Any] = {"question": self.question.format_map(row), "category": row.get(self.category)}
        if self.answers:
            return {**shown, "answers": row[self.answers]}
        choices = self.names or [option.format_map(row) for option in self.options] or row[self.choices]
        return {**shown, "choices": choices, "answer_index": self._index(row)}

    def _index(self, row: Mapping[str, Any]) -> Any:
        value = row[self.index] if self.index else 0
        labels = row[self.choices].get("label") if self.choices and isinstance(row[self.choices], Mapping) else None
        if labels:
            return list(labels).index(value) if value in labels else -1
        if isinstance(value, str) and not value.lstrip("-").isdigit():
            return value
        return int(value) - self.first


_NLI = ("yes", "it's impossible to say", "no")
_NLI_ASKED = "{premise}\nDoes this mean that: {hypothesis}"
_TOPICS = (
    "Society & Culture", "Science & Mathematics", "Health", "Education & Reference", "Computers & Internet",
    "Sports", "Business & Finance", "Entertainment & Music", "Family & Relationships", "Politics & Government",
)  # fmt: skip

RECIPES: dict[str, Recipe] = {
    "mmlu": Recipe("cais/mmlu", "{question}", "all", choices="choices", index="answer", train="auxiliary_train",
                   evaluation="test", category="subject"),
    "truthful_qa": Recipe("truthfulqa/truthful_qa", "{question}", "generation", answers="correct_answers",
                          train="validation", category="category"),
    "trivia_qa": Recipe("mandarjoshi/trivia_qa", "{question}", "rc.nocontext", answers="answer"),
    "nq_open": Recipe("google-research-datasets/nq_open", "{question}", answers="answer"),
    "sst2": Recipe("stanfordnlp/sst2", "Is this sentence negative or positive?\n{sentence}",
                   names=("negative", "positive"), index="label"),
    "amazon_polarity": Recipe("fancyzhx/amazon_polarity", "Is this review negative or positive?\n{title}\n{content}",
                              names=("negative", "positive"), index="label", evaluation="test"),
    "yahoo_topics": Recipe("community-datasets/yahoo_answers_topics", "What is this question about?\n{question_title}",
                           names=_TOPICS, index="topic", evaluation="test"),
    "alpaca_cleaned": Recipe("yahma/alpaca-cleaned", "{instruction}\n{input}", answers="output", evaluation="train"),
    "anli_r1": Recipe("facebook/anli", _NLI_ASKED, names=_NLI, index="label", train="train_r1", evaluation="test_r1"),
    "anli_r2": Recipe("facebook/anli", _NLI_ASKED, names=_NLI, index="label", train="train_r2", evaluation="test_r2"),
    "anli_r3": Recipe("facebook/anli", _NLI_ASKED, names=_NLI, index="label", train="train_r3", evaluation="test_r3"),
    "snli": Recipe("stanfordnlp/snli", _NLI_ASKED, names=_NLI, index="label"),
    "cb": Recipe("aps/super_glue", _NLI_ASKED, "cb", names=("yes", "no", "it's impossible to say"), index="label"),
    "copa": Recipe("aps/super_glue", "{premise}\nWhat is its {question}?", "copa", options=("{choice1}", "{choice2}"),
                   index="label"),
    "multirc": Recipe("aps/super_glue", "{paragraph}\n{question}\nIs it right to answer: {answer}", "multirc",
                      names=("no", "yes"), index="label"),
    "arc_easy": Recipe("allenai/ai2_arc", "{question}", "ARC-Easy", choices="choices", index="answerKey"),
    "arc_challenge": Recipe("allenai/ai2_arc", "{question}", "ARC-Challenge", choices="choices", index="answerKey"),
    "boolq": Recipe("google/boolq", "{passage}\n{question}?", names=("no", "yes"), index="answer"),
    "commonsense_qa": Recipe("tau/commonsense_qa", "{question}", choices="choices", index="answerKey"),
    "obqa": Recipe("allenai/openbookqa", "{question_stem}", "main", choices="choices", index="answerKey"),
    "sciq": Recipe("allenai/sciq", "{question}", answers="correct_answer"),
    "siqa": Recipe("allenai/social_i_qa", "{context} {question}", options=("{answerA}", "{answerB}", "{answerC}"),
                   index="label", first=1),
    "piqa": Recipe("ybisk/piqa", "{goal}", options=("{sol1}", "{sol2}"), index="label"),
    "cosmos_qa": Recipe("allenai/cosmos_qa", "{context}\n{question}",
                        options=("{answer0}", "{answer1}", "{answer2}", "{answer3}"), index="label"),
    "hellaswag": Recipe("Rowan/hellaswag", "How does it go on?\n{ctx}", choices="endings", index="label"),
    "winogrande": Recipe("allenai/winogrande", "Who or what is _?\n{sentence}", "winogrande_xl",
                         options=("{option1}", "{option2}"), index="answer", first=1),
    "trec": Recipe("CogComp/trec", "What does this question ask for?\n{text}", index="coarse_label", evaluation="test",
                   names=("abbreviation", "entity", "description", "human", "location", "number")),
}  # fmt: skip

MIXTURES: dict[str, tuple[str, ...]] = {
    "calibration_tuning_20k": (
        "anli_r1", "anli_r2", "anli_r3", "arc_easy", "arc_challenge", "boolq", "cb", "commonsense_qa", "copa",
        "cosmos_qa", "hellaswag", "multirc", "obqa", "piqa", "sciq", "siqa", "snli", "trec", "winogrande",
    ),
}  # fmt: skip
"""Sets taken in equal parts. Left out of the published one: sets whose Hub copy is a script, which `datasets` no
longer runs (math_qa, story_cloze). Rows are drawn with a seed; the published mixture takes the first ones."""


def read_recipe(name: str, part: str, limit: int | None = None, seed: int = 0) -> list[Question]:
    """Questions of a recipe or a mixture.

    Args:
        part: "train" or "eval". limit: rows at most; of a mixture, of all its sets together.

    Raises:
        InputError: no such recipe, or the set cannot be fetched.
    """
    if name in MIXTURES:
        quota = (limit or 20_000) // len(MIXTURES[name])
        return [question for member in MIXTURES[name] for question in read_recipe(member, part, quota, seed)]
    if name not in RECIPES:
        raise InputError(f"Unknown recipe {name!r}. Known: {', '.join([*RECIPES, *MIXTURES])}.")
    recipe = RECIPES[name]
    split = recipe.train if part == "train" else recipe.evaluation
    rows = _draw(_hub_rows(recipe.path, recipe.config, split), limit, seed)
    return as_questions((_named(recipe, row) for row in rows), name, Columns(), f"{recipe.path} {split}")


def read_hub(path: str, split: str, columns: Columns, config: str | None = None) -> list[Question]:
    """Questions of any set on the Hub, or of a folder that `datasets` reads. Raises InputError when it cannot."""
    return as_questions(_hub_rows(path, config, split), path.split("/")[-1], columns, f"{path} {split}")


def _named(recipe: Recipe, row: Mapping[str, Any]) -> Any:
    try:
        return recipe.row(row)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        return f"column {error}"  # told and counted by `as_questions`


def _draw(rows: Iterable[Any], limit: int | None, seed: int) -> Iterable[Any]:
    """`limit` of all rows at random (reservoir sampling, Vitter 1985, algorithm R), so that no set is held whole."""
    if limit is None:
        return rows
    coming: Iterator[Any] = iter(rows)
    kept, draw = list(islice(coming, limit)), random.Random(seed)
    for seen, row in enumerate(coming, start=limit + 1):
        at = draw.randrange(seen)
        if at < limit:
            kept[at] = row
    return kept


def _hub_rows(path: str, config: str | None, split: str) -> Iterable[Any]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError("Sets of the Hub need the package datasets: pip install datasets") from error
    try:
        return load_dataset(path, config, split=split)
    except Exception as error:  # datasets raises a dozen kinds; every one means that the set cannot be read
        reason = (str(error).strip() or type(error).__name__).split("\n")[0][:300]
        raise InputError(f"The data set {path} ({config or 'default'}, {split}) cannot be read: {reason}") from error
