"""The page as a whole, launched on a free port: what it offers to programs and what it keeps to itself."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from tests.doubles import ScriptedHost
from uqchat.config import AppConfig
from uqchat.ui.page import Page, build_page
from uqchat.ui.serve import close, launch
from uqchat.ui.services import Services, open_services


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    """Everything behind a page without history."""
    services = open_services(AppConfig(history=False, port=0), ScriptedHost())
    yield services
    close(services)


@pytest.fixture(scope="module")
def page(services: Services) -> Iterator[Page]:
    """The page, launched."""
    page = launch(services, prevent_thread_lock=True, quiet=True)
    yield page
    page.blocks.close()


@pytest.fixture(scope="module")
def client(page: Page) -> Client:
    """A program that uses the page."""
    return Client(page.blocks.local_url, verbose=False)


def test_the_answer_endpoint_gives_tokens_with_the_chosen_risks(client: Client) -> None:
    answer = client.predict(message="Capital of France?", estimators=["margin"], api_name="/answer")
    assert answer["text"] == "Paris is the capital of France."
    assert set(answer["tokens"][0]["risks"]) == {"margin"} == set(answer["risks"])


def test_the_answer_endpoint_explains_bad_input(client: Client) -> None:
    for arguments, words in (({"message": " "}, "empty"), ({"message": "x", "temperature": -1.0}, "temperature")):
        with pytest.raises(AppError, match=words):
            client.predict(**arguments, api_name="/answer")


def test_the_score_endpoint_scores_and_generates_nothing(client: Client, services: Services) -> None:
    asked = len(services.host.requests)
    given = {"question": "Capital of France?", "answer": "Lyon, I think.", "system": "Be brief."}
    answer = client.predict(**given, estimators=["entropy"], api_name="/score")
    assert (answer["text"], answer["finish_reason"]) == ("Lyon, I think.", "given")
    assert set(answer["tokens"][0]["risks"]) == {"entropy"} and len(services.host.requests) == asked
    with pytest.raises(AppError, match="answer is empty"):
        client.predict(question="Capital?", answer=" ", api_name="/score")


def test_the_public_endpoints_are_two_and_say_what_they_do(client: Client) -> None:
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert list(endpoints) == ["/answer", "/score"]
    assert "Nothing is stored" in json.dumps(endpoints["/answer"])
    assert "nothing is stored" in json.dumps(endpoints["/score"])


def test_every_handler_has_a_docstring(page: Page) -> None:
    for function in page.blocks.fns.values():
        assert function.fn is None or (function.fn.__doc__ or "").strip(), function.name


def test_the_configuration_holds_no_chat_and_no_token(services: Services, page: Page) -> None:
    services.store.create_chat("browser:x", "A very private title")
    assert "very private" not in json.dumps(page.blocks.config, default=str)


def test_a_page_can_be_built_twice(services: Services) -> None:
    assert build_page(services).blocks is not build_page(services).blocks
