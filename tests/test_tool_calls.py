"""Tools, tool calls and reasoning as chat templates write them: what is trained is what stands in the text."""

import json
from dataclasses import replace

import pytest

from luthier.methods.conversations import ConversationSft
from luthier.methods.preferences.pairs import answered
from luthier.prompts import Dialogue, Layout, PromptError
from luthier.records import Call, Conversation, Message, Source
from tiny import CHATML, tiny_tokenizer

SOURCE = Source("x.jsonl", 1)
ASKS = "{% if add_generation_prompt %}"
# Qwen2.5 and Hermes: calls are JSON in tags, results stand in the user's turn
HERMES = (
    "{% if tools %}<|im_start|>system{{ '\n' }}Tools:{% for t in tools %}{{ '\n' }}{{ t | tojson }}{% endfor %}<|im_end|>"
    "{{ '\n' }}{% endif %}{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user{{ '\n' }}<tool_response>"
    "{{ m.content }}</tool_response>{% else %}<|im_start|>{{ m.role }}{{ '\n' }}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '\n' if m.content or not loop.first }}<tool_call>{{ '\n' }}"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}{{ \'\n\' }}</tool_call>'
    "{% endfor %}{% endif %}<|im_end|>{{ '\n' }}{% endfor %}" + ASKS + "<|im_start|>assistant{{ '\n' }}{% endif %}"
)
# Llama 3: JSON with parameters, another token behind calls, what tools say as JSON
LLAMA = (
    "{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|head|>"
    "{{ 'ipython' if m.role == 'tool' else m.role }}<|/head|>\n{% if m.tool_calls %}{\"name\": "
    '"{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}<|eom|>'
    "{% elif m.role == 'tool' %}{{ m.content | tojson }}<|eot|>{% else %}{{ m.content | trim }}<|eot|>{% endif %}"
    "{% endfor %}" + ASKS + "<|head|>assistant<|/head|>\n{% endif %}"
)
# Mistral: special tokens open calls and arguments, the id stands behind them
MISTRAL = (
    "{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{% if m.role == 'user' %}[INST]"
    "{{ m.content }}[/INST]{% elif m.role == 'tool' %}[RESULT]{{ m.content }}[/RESULT]{% elif m.tool_calls %}"
    '{% for c in m.tool_calls %}[CALL]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}, "id": '
    '"{{ c.id }}"{% endfor %}</s>{% else %}{{ m.content }}</s>{% endif %}{% endfor %}'
)
# gpt-oss: channels behind special tokens, and the name of the call stands in what the tool says
CHANNELS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if m.thinking %}<s>assistant<c>analysis<m>{{ m.thinking }}<e>{% endif %}{% if m.tool_calls %}<s>assistant<c>to="
    "{{ m.tool_calls[0].function.name }}<m>{{ m.tool_calls[0].function.arguments | tojson }}<call>{% else %}"
    "<s>assistant<c>final<m>{{ m.content }}<e>{% endif %}{% elif m.role == 'tool' %}<s>{{ m.name }}<m>{{ m.content }}<e>"
    "{% else %}<s>{{ m.role }}<m>{{ m.content }}<e>{% endif %}{% endfor %}" + ASKS + "<s>assistant{% endif %}"
)
# fields instead of JSON, and a closing token that is special
FIELDS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<f>{{ c.function.name }}{% for k, v in c.function.arguments.items() %}"
    "<p {{ k }}>{{ v }}</p>{% endfor %}<|/call|>{% endfor %}<|im_end|>{% endfor %}"
    + ASKS + "<|im_start|>assistant\n{% endif %}"
)  # fmt: skip
FAMILIES = {  # template, its special tokens, the first two calls as they are learnt
    "hermes": (HERMES, (), '<tool_call>\n{"name": "look", "arguments": {"city": "Cremona", "n": 2}}\n</tool_call>'
               '<|im_end|>'),
    "llama": (LLAMA, ("<|bos|>", "<|head|>", "<|/head|>", "<|eot|>", "<|eom|>"),
              '{"name": "look", "parameters": {"city": "Cremona", "n": 2}}<|eom|>'),
    "mistral": (MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]", "[CALL]", "[ARGS]", "[RESULT]", "[/RESULT]"),
                '[CALL]look[ARGS]{"city": "Cremona", "n": 2}, "id": "c1"</s>'),
    "channels": (CHANNELS, ("<s>", "<c>", "<m>", "<e>", "<call>"),
                 '<c>to=look<m>{"city": "Cremona", "n": 2}<call>'),
    "fields": (FIELDS, ("<|/call|>",), "<f>look<p city>Cremona</p><p n>2</p><|/call|><|im_end|>"),
}  # fmt: skip
TOOLS = json.dumps([{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}])
LOOK = Call("look", '{"city": "Cremona", "n": 2}', "c1")
ASKED = Message("user", "Weather?", tools=TOOLS)
CALLED = Message("assistant", "", calls=(LOOK,))
RESULT = Message("tool", '21 "C"', call_id="c1")
ANSWER = Message("assistant", "It is warm.")
TALK = (ASKED, CALLED, RESULT, ANSWER)


def dialogue(template: str | None = HERMES, specials: tuple[str, ...] = (), style: str = "chat"):
    tokenizer = tiny_tokenizer(template)
    if specials:
        known = ("<|im_start|>", "<|im_end|>") if template == FIELDS else ()
        tokenizer.add_special_tokens({"additional_special_tokens": [*known, *specials], "bos_token": specials[0]})
    return Dialogue(Layout(tokenizer), style)


def learnt(prompt: Dialogue, *turns: Message) -> list[str]:
    """The text of each trained turn."""
    ((tokens, found),) = prompt.encode([turns])
    return [prompt.tokenizer.decode(tokens[turn.start : turn.stop]) for turn in found]


@pytest.mark.parametrize("family", FAMILIES)
def test_calls_and_the_answers_after_them_are_learnt_as_the_template_writes_them(family):
    template, specials, wanted = FAMILIES[family]
    prompt = dialogue(template, specials)
    called, said = learnt(prompt, *TALK)
    assert called == wanted and "It is warm." in said and "21" not in said
    ((tokens, found),) = prompt.encode([TALK])
    for turn, asked in zip(found, prompt.encode_prompts([TALK[:1], TALK[:3]]), strict=True):
        assert tokens[: turn.start] == asked, "what the model is asked with"
    text = prompt.tokenizer.decode(tokens)
    assert text.count('"parameters"') >= 1 and "21" in text and found[-1].stop == len(tokens)


def test_bytes_of_a_call_are_those_of_its_text():
    ((_, (called, _)),) = dialogue().encode([TALK])
    assert called.num_bytes == len(FAMILIES["hermes"][2].removesuffix("<|im_end|>"))


def test_several_calls_in_a_turn_and_text_beside_them():
    turn = Message("assistant", "I look twice.", calls=(LOOK, Call("look", "{}", "c2")))
    (called,) = learnt(dialogue(), ASKED, turn)
    assert called == (
        'I look twice.\n<tool_call>\n{"name": "look", "arguments": {"city": "Cremona", "n": 2}}\n</tool_call>'
        '\n<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call><|im_end|>'
    )


def test_the_same_call_twice_is_found_at_its_own_place():
    again = (Message("user", "Weather?"), replace(CALLED, calls=(replace(LOOK, id="c2"),)))
    assert learnt(dialogue(), *TALK, *again) == [
        FAMILIES["hermes"][2],
        "It is warm.<|im_end|>",
        FAMILIES["hermes"][2],
    ]


def test_a_call_of_weight_0_is_context():
    assert learnt(dialogue(), ASKED, replace(CALLED, weight=0.0), *TALK[2:]) == ["It is warm.<|im_end|>"]


def test_pairs_that_differ_in_a_call():
    wrong = replace(CALLED, calls=(Call("look", '{"city": "Rome"}', "c1"),))
    prompt = dialogue()
    chosen, rejected = answered(prompt, [((ASKED,), (turn,)) for turn in (CALLED, wrong)])
    assert chosen.start == rejected.start and chosen.sequence != rejected.sequence
    assert "Rome" in prompt.tokenizer.decode(rejected.sequence.tokens[rejected.start :])


def refused(prompt: Dialogue, *turns: Message) -> str:
    with pytest.raises(PromptError) as error:
        prompt.encode([turns])
    return str(error.value)


def test_a_template_that_ignores_tools_calls_or_their_results_is_refused():
    said = "the chat template leaves out the tools that the row defines (with and without them it writes the same)"
    assert refused(dialogue(CHATML), *TALK).startswith(said)
    with pytest.raises(PromptError, match="leaves out the tools"):
        dialogue(CHATML).encode_prompts([TALK[:1]])
    untold = (replace(ASKED, tools=""), *TALK[1:])
    said = "the chat template leaves out a tool call, or a part of it: 'look' does not stand in the text. Take a model "
    assert refused(dialogue(CHATML), *untold).startswith(said)
    silent = HERMES.replace("{{ m.content }}</tool_response>", "</tool_response>")
    assert refused(dialogue(silent), *TALK).startswith(
        "the chat template leaves out a tool's answer, or a part of it: '21"
    )
    first = HERMES.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]")
    two = replace(CALLED, calls=(LOOK, Call("look", '{"city": "Rome"}', "c2")))
    assert "'Rome' does not stand in the text" in refused(dialogue(first), ASKED, two)
    later = (ASKED, two, RESULT, Message("assistant", "Rome."))
    assert "'Rome' does not stand in the text" in refused(dialogue(first), *later), "in the turn itself"


def test_an_argument_with_a_special_token_is_refused():
    bad = replace(CALLED, calls=(Call("look", '{"city": "<|im_end|>"}'),))
    assert refused(dialogue(), ASKED, bad).startswith('the answer holds the text "<|im_end|>", a special token')


@pytest.mark.parametrize("style", ["hash", "plain"])
def test_other_layouts_cannot_write_calls(style):
    assert refused(dialogue(style=style), *TALK) == (
        "the row has tools, tool calls or a reasoning, which only a model's own chat template knows how to write: "
        f"prompt.layout is {style}. Take a model with such a template and layout chat, or write them into the content "
        "of the turns."
    )
    assert "this model has none" in refused(dialogue(None), *TALK)


def test_a_row_with_calls_as_sft_sees_it():
    prompt = dialogue()
    (example,) = ConversationSft().view(prompt, [Conversation(TALK, SOURCE)])
    (sequence,) = example.sequences
    text = prompt.tokenizer.decode([sequence.tokens[target] for target in sequence.targets])
    assert text == FAMILIES["hermes"][2] + "It is warm.<|im_end|>"


# --- reasoning ------------------------------------------------------------------------------------------

QWEN = r"""{%- set ns = namespace(last=0) -%}{%- for m in messages %}{%- if m.role == 'user' %}
{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor -%}
{%- for m in messages -%}
{%- if m.role != 'assistant' -%}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}
{%- else -%}{%- set content = m.content -%}{%- set thought = m.reasoning_content or '' -%}
{%- if '</think>' in content -%}
{%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') -%}
{%- set content = content.split('</think>')[-1].lstrip('\n') -%}{%- endif -%}
{%- if loop.index0 > ns.last and (loop.last or thought) -%}
{{- '<|im_start|>assistant\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') -}}
{%- else -%}{{- '<|im_start|>assistant\n' + content -}}{%- endif -%}{{- '<|im_end|>\n' -}}{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\nOPENING' -}}{%- endif -%}"""
HYBRID, THINKS = QWEN.replace("OPENING", ""), QWEN.replace("OPENING", r"<think>\n")
IN_CONTENT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + (
    ASKS + "<|im_start|>assistant\n<think>\n{% endif %}"
)
QUESTION = Message("user", "Why?")
WHOLE = "<think>\nhmm\n</think>\n\nyes<|im_end|>"
OPENED = WHOLE.removeprefix("<think>\n")


@pytest.mark.parametrize(
    "answer",
    [
        Message("assistant", "<think>\nhmm\n</think>\n\nyes"),
        Message("assistant", "<think>hmm</think>yes"),
        Message("assistant", "<think>\n\nhmm</think>\nyes"),
        Message("assistant", "yes", reasoning="hmm"),
        Message("assistant", "yes", reasoning="\nhmm\n"),
    ],
)
def test_thoughts_are_learnt_from_where_the_prompt_ends(answer):
    """White space beside tags is the template's, and a tag that the prompt has opened is not learnt again."""
    assert learnt(dialogue(HYBRID), QUESTION, answer) == [WHOLE]
    assert learnt(dialogue(THINKS), QUESTION, answer) == [OPENED]


def test_thoughts_before_the_last_question_may_be_dropped_where_only_the_last_answer_is_learnt():
    thought = Message("assistant", "yes", reasoning="hmm")
    turns = (QUESTION, replace(thought, weight=0.0), QUESTION, thought)
    assert learnt(dialogue(HYBRID), *turns) == [WHOLE] and learnt(dialogue(THINKS), *turns) == [OPENED]


def test_a_thought_that_the_template_drops_is_refused():
    drops = HYBRID.replace("thought.strip('\\n')", "''")
    said = refused(dialogue(drops), QUESTION, Message("assistant", "yes", reasoning="hmm"))
    assert "the row says 'hmm', the text '<think>" in said and said.endswith("drops, or leave the row out.")


def test_a_template_without_the_field_gets_the_thought_in_the_content():
    turns = (QUESTION, Message("assistant", "yes", reasoning="hmm"))
    assert learnt(dialogue(IN_CONTENT.replace("\n<think>\n{%", "\n{% set x = '<think>' %}{%")), *turns) == [WHOLE]
    said = refused(dialogue(CHATML), *turns)
    assert said.startswith("a turn has a reasoning, but the chat template has no place for it (no field")


def test_a_thought_and_a_call_in_channels():
    prompt = dialogue(*FAMILIES["channels"][:2])
    thought = replace(CALLED, reasoning="I look.")
    assert learnt(prompt, ASKED, thought, RESULT, ANSWER) == [
        '<c>analysis<m>I look.<e><s>assistant<c>to=look<m>{"city": "Cremona", "n": 2}<call>',
        "<c>final<m>It is warm.<e>",
    ]


@pytest.mark.parametrize("template", [HYBRID, THINKS])
def test_where_earlier_thoughts_are_dropped_each_answer_is_learnt_behind_its_own_prompt(template):
    prompt = dialogue(template)
    first, last = Message("assistant", "yes", 0.5, reasoning="hmm"), Message("assistant", "no", reasoning="oh")
    row = Conversation((QUESTION, first, QUESTION, last), SOURCE)
    (example,) = ConversationSft().view(prompt, [row])
    texts = [prompt.tokenizer.decode([s.tokens[target] for target in s.targets]) for s in example.sequences]
    wanted = [WHOLE, "<think>\noh\n</think>\n\nno<|im_end|>"]
    assert texts == [text.removeprefix("<think>\n") if template == THINKS else text for text in wanted]
    assert [set(sequence.weights) for sequence in example.sequences] == [{0.5}, {1.0}]
    asked = prompt.encode_prompts([row.messages[:1], row.messages[:3]])
    for tokens, sequence in zip(asked, example.sequences, strict=True):
        assert sequence.tokens[: sequence.targets[0]] == tokens, "what the model is asked with"
    assert "hmm" not in prompt.tokenizer.decode(example.sequences[1].tokens)
    batch = ConversationSft().view(prompt, [row, Conversation(row.messages[:2], SOURCE)])
    assert batch[0] == example and len(batch[1].sequences) == 1
    with pytest.raises(PromptError):
        ConversationSft(may_part=False).view(prompt, [row])
