"""What a model is given to answer: rows of each schema, and chats as their template prompts the assistant."""

from typing import Any

import pytest

from analysis.errors import ConfigError
from tests.trainer.data.test_chat import CALLED, LONG, SHORT, SMOLLM2, TOOLS, template_of, tokenizer  # noqa: F401
from tests.trainer.data.test_text_tokens import KINDS, made
from trainer.config import TaskConfig
from trainer.data.schemas import Row
from trainer.data.tokenize import tokens_of
from trainer.generation.prompts import Prompt, prompts_of

TASK = TaskConfig(name="completion")
WINDOW = 4096


def chat(tokenizer: Any, messages: Any, tools: Any = None, window: int = WINDOW, turns: str = "last") -> list[Prompt]:  # noqa: F811
    row = Row("r-0", "", "", messages=tuple(messages), tools=tools)
    return prompts_of([row], [], (), "chat", tokenizer, TASK, window, 8, turns)


@pytest.mark.parametrize("name", ["smollm2", "qwen2_5", "qwen3", "llama3", "gemma3", "glm4moe", "gptoss", "phi3"])
@pytest.mark.parametrize("turns", ["last", "every"])
def test_a_chat_is_prompted_as_its_template_prompts_the_assistant(name: str, turns: str, tokenizer: Any) -> None:  # noqa: F811
    tokenizer.chat_template = SMOLLM2 if name == "smollm2" else template_of(name)
    messages = [message for message in LONG if name != "gemma3" or message["role"] != "system"]
    prompts = chat(tokenizer, messages, turns=turns)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    assert len(prompts) == (2 if turns == "every" else 1)
    for prompt, i in zip(prompts, answers[-len(prompts) :], strict=True):
        expected = tokenizer.apply_chat_template(messages[:i], add_generation_prompt=True, return_dict=True)
        assert prompt.tokens == tuple(expected["input_ids"])
        assert prompt.reference == messages[i]["content"].strip()
        assert not prompt.cut
    assert [prompt.item_id for prompt in prompts] == ["r-0#1", "r-0"][-len(prompts) :]
    assert prompts[-1].text.splitlines()[-2:] == ["assistant: An apple, or a pear.", "user: And  a metal?"]


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3_1", "glm4moe"])
def test_tools_and_calls_are_in_the_prompt_and_in_the_reference(name: str, tokenizer: Any) -> None:  # noqa: F811
    tokenizer.chat_template = template_of(name)
    called, said = chat(tokenizer, CALLED, TOOLS, turns="every")
    for prompt, i in ((called, 1), (said, 3)):
        expected = tokenizer.apply_chat_template(CALLED[:i], tools=TOOLS, add_generation_prompt=True, return_dict=True)
        assert prompt.tokens == tuple(expected["input_ids"])
    assert "weather" in called.reference
    assert "Lund" in called.reference
    assert "<|" not in called.reference
    assert called.text == "Rain in Lund?"
    assert said.reference == "It rains."


def test_turns_that_are_not_learned_or_have_nothing_before_them_are_not_asked_for(tokenizer: Any) -> None:  # noqa: F811
    tokenizer.chat_template = SMOLLM2
    first = {"role": "assistant", "content": "Hello"}
    messages = [
        first,
        *SHORT,
        {"role": "user", "content": "More?"},
        {"role": "assistant", "content": "No", "weight": 0},
    ]
    [prompt] = chat(tokenizer, messages, turns="every")
    assert (prompt.item_id, prompt.reference) == ("r-0", SHORT[1]["content"])
    plain = [{key: part for key, part in message.items() if key != "weight"} for message in messages]
    expected = tokenizer.apply_chat_template(plain[:2], add_generation_prompt=True, return_dict=True)
    assert prompt.tokens == tuple(expected["input_ids"])
    assert chat(tokenizer, messages, turns="last") == [prompt]


def test_marks_of_what_is_learned_are_not_in_the_prompt(tokenizer: Any) -> None:  # noqa: F811
    tokenizer.chat_template = "{% for m in messages %}{{ m | tojson }}{% endfor %}"
    earlier = [SHORT[0], SHORT[1] | {"weight": 0}]
    [prompt] = chat(tokenizer, [*earlier, *SHORT])
    assert "Name a fruit." in tokenizer.decode(prompt.tokens)
    assert "weight" not in tokenizer.decode(prompt.tokens)


def test_a_prompt_that_is_too_long_loses_its_beginning(tokenizer: Any) -> None:  # noqa: F811
    tokenizer.chat_template = "{{ bos_token }}" + SMOLLM2
    [whole] = chat(tokenizer, SHORT)
    [cut] = chat(tokenizer, SHORT, window=30)
    assert cut.cut
    assert not whole.cut
    assert cut.tokens == (whole.tokens[0], *whole.tokens[-21:])
    assert cut.tokens[0] == tokenizer.bos_token_id
    tokenizer.chat_template = SMOLLM2
    assert chat(tokenizer, SHORT, window=30)[0].tokens == whole.tokens[-22:]
    assert chat(tokenizer, SHORT, window=len(whole.tokens) + 7)[0].tokens == whole.tokens[1:]
    with pytest.raises(ConfigError, match=r"eval.max_new_tokens=8 leaves no room for a prompt.*window of 8 tokens"):
        chat(tokenizer, SHORT, window=8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_completion_is_prompted_with_the_tokens_it_was_trained_behind(kind: str) -> None:
    """A token that spans the border belongs to the completion: the prompt is the context of the row."""
    words = made(kind)
    rows = [
        Row("r-0", "I was charged\nLabel:", "", completion=" a bug"),
        Row("r-1", "a pho", "", completion="to of me "),
    ]
    encoded = tokens_of(rows, (), "completion", words, TASK, 99, training=False).encoded
    prompts = prompts_of(rows, encoded, (), "completion", words, TASK, WINDOW, 8)
    assert [prompt.tokens for prompt in prompts] == [row.context for row in encoded]
    assert [prompt.text for prompt in prompts] == ["I was charged\nLabel:", "a pho"]
    assert [prompt.reference for prompt in prompts] == ["a bug", "to of me"]
    assert [(prompt.item_id, prompt.row, prompt.cut) for prompt in prompts] == [("r-0", 0, False), ("r-1", 1, False)]
    short = tokens_of(rows, (), "completion", words, TASK, len(encoded[0].tokens) - 1, training=False).encoded
    assert prompts_of(rows, short, (), "completion", words, TASK, WINDOW, 8)[0].cut


def test_a_labelled_row_is_prompted_without_its_label(make_trial: Any, kept: Any) -> None:
    trial = make_trial("llama")
    base, validation = kept.base(trial), kept.validation(trial)
    arguments = (validation.rows, validation.encoded, validation.labels, "label", base.tokenizer, trial.task)
    prompts = prompts_of(*arguments, base.window, 8)
    for prompt, row in zip(prompts, validation.rows, strict=True):
        assert prompt.text == trial.task.prompt.replace("{text}", row.text)
        assert prompt.tokens == tuple(base.tokenizer(prompt.text).input_ids)
        assert prompt.reference == row.label
    assert prompts_of(*arguments[:3], "text", *arguments[4:], base.window, 8) == []
    head = TaskConfig(name="classification")
    assert prompts_of(*arguments[:-1], head, base.window, 8) == []
