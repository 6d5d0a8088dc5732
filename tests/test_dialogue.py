"""Conversations, instructions and completions as tokens: what is learnt, and that it is what the model is asked with."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from luthier.corpus.lines import Problem
from luthier.corpus.templates import hash_layout
from luthier.methods.base import make_batch
from luthier.methods.conversations import ConversationSft
from luthier.models import load_model
from luthier.prompts import Dialogue, Layout, PromptError
from luthier.recipe import Lora
from luthier.recipe.methods import Sft
from luthier.records import Completion, Conversation, Document, Instruction, Message, Preference, Rating, Source
from luthier.training.learner import new_learner
from tiny import CHATML, TURN_END, tiny_tokenizer

SOURCE = Source("x.jsonl", 1)
ASKS = "{% if add_generation_prompt %}"
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|head|>{{ m['role'] }}<|/head|>\n{{ m['content'] | trim }}<|eot|>"
    "{% endfor %}" + ASKS + "<|head|>assistant<|/head|>\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] | trim }}</s>"
    "{% else %}[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}<turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end>\n"
    "{% endfor %}" + ASKS + "<turn>model\n{% endif %}"
)
DEFAULT_SYSTEM = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + CHATML
TURN = "<|im_start|>{{ m['role'] }}\n"
DROPS_THINKING = (
    "{% for m in messages %}" + TURN + "{{ m['content'] if loop.last else m['content'].split('</think>')[-1] }}"
    "<|im_end|>\n{% endfor %}" + ASKS + "<|im_start|>assistant\n{% endif %}"
)
EMPTY_THINKING = (
    "{% for m in messages %}" + TURN + "{{ '<think></think>' if loop.last and m['role'] == 'assistant' else '' }}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}" + ASKS + "<|im_start|>assistant\n{% endif %}"
)
ENDLESS = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}" + ASKS + "assistant: {% endif %}"
FAMILIES = {  # template, its special tokens, the end of a turn
    "chatml": (CHATML, (), "<|im_end|>"),
    "llama": (LLAMA, ("<|bos|>", "<|head|>", "<|/head|>", "<|eot|>"), "<|eot|>"),
    "mistral": (MISTRAL, ("<s>", "</s>"), "</s>"),
    "gemma": (GEMMA, ("<bos>", "<turn>", "<end>"), "<end>"),
    "default system": (DEFAULT_SYSTEM, (), "<|im_end|>"),
}


def dialogue(template: str | None = CHATML, specials: tuple[str, ...] = (), style: str = "chat", system: str = ""):
    tokenizer = tiny_tokenizer(template)
    if specials:
        tokenizer.add_special_tokens({"additional_special_tokens": list(specials), "bos_token": specials[0]})
    return Dialogue(Layout(tokenizer), style, system)


def talk(*contents: str) -> tuple[Message, ...]:
    """User and assistant in turn."""
    return tuple(Message("assistant" if n % 2 else "user", content) for n, content in enumerate(contents))


def said(prompt: Dialogue, tokens, turns) -> list[str]:
    """The text of each turn's tokens."""
    return [prompt.tokenizer.decode(tokens[turn.start : turn.stop]) for turn in turns]


def learn(prompt: Dialogue, *turns: Message, train_on: str = "answers"):
    """The example of a conversation."""
    (example,) = ConversationSft(settings=Sft(train_on=train_on)).view(prompt, [Conversation(turns, SOURCE)])
    return example


# --- chat templates -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_turns_of_a_family_are_found_and_their_prompts_are_what_the_model_is_asked_with(family):
    template, specials, end = FAMILIES[family]
    prompt = dialogue(template, specials)
    turns = talk("Classify the text", "Sports goal é", "a new match", "Politics")
    ((tokens, found),) = prompt.encode([turns])
    space = " " if family == "mistral" else ""
    assert said(prompt, tokens, found) == [f"{space}Sports goal é{end}", f"{space}Politics{end}"]
    assert [turn.num_bytes for turn in found] == [len(space) + 14, len(space) + 8]
    for turn, asked in zip(found, prompt.encode_prompts([turns[:1], turns[:3]]), strict=True):
        assert tokens[: turn.start] == asked
    assert found[-1].stop == len(tokens), "nothing behind the last turn is kept"


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma"])
def test_a_template_that_trims_answers(family):
    template, specials, end = FAMILIES[family]
    prompt = dialogue(template, specials)
    ((tokens, found),) = prompt.encode([talk("Text", "  Sports \n", ".", " Arts\n\n")])
    space = " " if family == "mistral" else ""
    assert said(prompt, tokens, found) == [f"{space}Sports{end}", f"{space}Arts{end}"]


def test_a_default_system_message_stands_in_every_prompt_of_the_conversation():
    prompt = dialogue(DEFAULT_SYSTEM)
    ((tokens, _),) = prompt.encode([talk("Text", "Sports")])
    assert prompt.tokenizer.decode(tokens).startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nText")


def test_the_recipes_system_message_stands_where_the_row_has_none():
    prompt = dialogue(system="Be brief.")
    own = (Message("system", "Own."), *talk("Text", "Sports"))
    rows = [Conversation(talk("Text", "Sports"), SOURCE), Conversation(own, SOURCE)]
    assert [prompt.messages(row)[0].content for row in rows] == ["Be brief.", "Own."]
    (asked,) = prompt.encode_prompts([talk("Text")])
    assert prompt.tokenizer.decode(asked).startswith("<|im_start|>system\nBe brief.<|im_end|>")


def test_what_a_template_puts_before_the_answer_is_learnt_with_it():
    """Qwen3's way: the last answer gets an empty thought. Its end is found behind all that was said."""
    prompt = dialogue(EMPTY_THINKING)
    ((tokens, found),) = prompt.encode([talk("Text", "Sports", "Text", "Politics one two three four five")])
    assert said(prompt, tokens, found) == [
        f"Sports{TURN_END}",
        f"<think></think>Politics one two three four five{TURN_END}",
    ]
    assert found[1].num_bytes == len("<think></think>Politics one two three four five")


def test_a_template_that_rewrites_earlier_turns_is_refused_with_a_way_out():
    turns = talk("Text", "<think>a goal</think>Sports", "Text", "Politics")
    prompt = dialogue(DROPS_THINKING)
    with pytest.raises(PromptError) as refused:
        prompt.encode([turns])
    assert "the chat template writes the answer differently from how the row has it" in str(refused.value)
    assert "the row says '<think>a goal</think>Sports', the text 'Sports<|im_end|>" in str(refused.value)
    assert "set method.train_on: last_answer" in str(refused.value)
    example = learn(prompt, *turns, train_on="last_answer")
    (sequence,) = example.sequences
    assert prompt.tokenizer.decode([sequence.tokens[i] for i in sequence.targets]) == f"Politics{TURN_END}"
    (asked,) = prompt.encode_prompts([turns[:3]])
    assert sequence.tokens[: len(asked)] == asked and "goal" not in prompt.tokenizer.decode(asked)


def test_an_answer_that_comes_again_later_is_not_taken_for_the_one_that_was_rewritten():
    turns = talk("Text", "<think>x</think>", "Is that <think>x</think> or not", "Sports")
    with pytest.raises(PromptError, match="writes the answer differently"):
        dialogue(DROPS_THINKING).encode([turns])


def test_a_prompt_that_changes_once_it_is_answered_is_refused():
    """A template that marks the last user's turn: no prompt of an earlier turn is a prefix."""
    template = CHATML.replace("{{ message['content'] }}", "{{ message['content'] }}{{ ' !' if loop.last else '' }}")
    with pytest.raises(PromptError) as refused:
        dialogue(template).encode([talk("Text", "Sports", "Text", "Arts")])
    assert "the chat template renders the prompt differently once it is answered" in str(refused.value)
    assert str(refused.value).endswith("this template may allow, set method.train_on: last_answer.")


def test_the_same_text_with_other_tokens_at_the_border_is_refused():
    """The template ends prompts with a space, which becomes part of the answer's first word."""
    template = CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant ").replace(
        "{{ message['role'] }}\n", "{{ message['role'] }}{{ ' ' if message['role'] == 'assistant' else '\n' }}"
    )
    with pytest.raises(PromptError, match=r"\(the same text, but other tokens where the answer begins\)"):
        dialogue(template).encode([talk("Text", "goal")])


def test_a_template_that_ends_no_turn_is_refused_with_what_was_measured():
    with pytest.raises(PromptError) as refused:
        dialogue(ENDLESS).encode([talk("Text", ".Sports goal")])
    assert str(refused.value) == (
        "nothing ends the assistant's turn, so the model would not learn to stop: behind 'istant: .Sports goal' comes "
        "'\\n', which is no special token. Mend the model's chat_template, or set prompt.layout: hash, which uses the "
        "eos token."
    )


def test_a_template_that_refuses_the_row_says_why():
    with pytest.raises(PromptError, match="the model's chat template failed on this conversation: no system role"):
        dialogue(*FAMILIES["gemma"][:2]).encode([(Message("system", "x"), *talk("Text", "Sports"))])


def test_an_answer_that_holds_a_special_token_is_refused():
    with pytest.raises(PromptError) as refused:
        dialogue().encode([talk("Text", "Sports<|im_end|>goal")])
    assert str(refused.value) == (
        'the answer holds the text "<|im_end|>", a special token of this model, which would end or open a turn inside '
        "it. Take it out of the row, or leave the row out."
    )


# --- layouts of our own ---------------------------------------------------------------------------------


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_the_hash_layout_is_that_of_the_corpus(instruction, context, response):
    """`luthier data` writes the same text as training with layout hash reads; the eos token follows."""
    row = Instruction(instruction, context, response, SOURCE)
    wanted = hash_layout().render(row)
    prompt = dialogue(style="hash")
    turns = prompt.messages(row)
    assert prompt.render(turns[:-1], ask=True) == (wanted.prompt if isinstance(wanted, Completion) else prompt_of(row))
    assert prompt.render(turns, ask=False) == prompt.render(turns[:-1], ask=True) + response + TURN_END


def prompt_of(row: Instruction) -> str:
    """The prompt of a row whose response is empty, which the corpus refuses."""
    filled = hash_layout().render(replace(row, response="x"))
    assert isinstance(filled, Completion)
    return filled.prompt


def test_the_hash_layout_of_a_conversation():
    prompt = dialogue(style="hash", system="Be brief.")
    turns = prompt.messages(Conversation(talk("Text", "Sports", "### Text", "Arts"), SOURCE))
    assert prompt.render(turns, ask=False) == (
        "Be brief.\n\n### Instruction:\nText\n\n### Response:\nSports<|im_end|>"
        "### Instruction:\n### Text\n\n### Response:\nArts<|im_end|>"
    )
    ((tokens, found),) = prompt.encode([turns])
    assert said(prompt, tokens, found) == ["Sports<|im_end|>", "Arts<|im_end|>"]


def test_the_plain_layout_adds_nothing_to_a_completion():
    prompt = dialogue(style="plain")
    row = Completion("Text is", " Sports goal", SOURCE)
    ((tokens, found),) = prompt.encode([prompt.messages(row)])
    assert prompt.tokenizer.decode(tokens) == "Text is Sports goal<|im_end|>"
    assert said(prompt, tokens, found) == [" Sports goal<|im_end|>"] and found[0].num_bytes == 12


def test_an_instruction_in_the_plain_layout_stands_on_lines_of_its_own():
    prompt = dialogue(style="plain")
    rows = [Instruction("Classify", "a goal", "Sports", SOURCE), Instruction("Classify", " ", "Sports", SOURCE)]
    texts = [prompt.render(prompt.messages(row), ask=False) for row in rows]
    assert texts == ["Classify\n\na goal\nSports<|im_end|>", "Classify\nSports<|im_end|>"]
    assert len(prompt.encode([prompt.messages(row) for row in rows])) == 2


@pytest.mark.parametrize(("before", "answer"), [("Text: ", "goal"), ("Text:\n\n", "goal")])
def test_a_tokenizer_that_merges_across_the_border_is_refused(before, answer):
    """A space belongs to the word behind it; two line breaks are one token, but not before a word."""
    prompt = dialogue(style="plain")
    with pytest.raises(PromptError) as refused:
        prompt.encode([talk(before, answer)])
    assert f"the prompt ends with {before!r}, and then comes 'goal<|im_end|>'" in str(refused.value)
    assert "Move spaces and line breaks at the end of prompts to the beginning of their answers" in str(refused.value)
    moved = talk(before.rstrip(), before[len(before.rstrip()) :] + answer)
    assert said(prompt, *prompt.encode([moved])[0]) == [f"{moved[1].content}<|im_end|>"]


def test_a_model_without_template_gets_lines_and_the_token_that_opens_texts():
    prompt = dialogue(None)
    assert prompt.render(talk("Text", "Sports", "Text", "Arts"), ask=False) == (
        "Text\nSports<|endoftext|>Text\nArts<|endoftext|>"
    )
    opened = tiny_tokenizer(None)
    opened.add_special_tokens({"bos_token": "<|im_start|>"})
    opened._tokenizer.post_processor = TemplateProcessing("<|im_start|> $A", None, [("<|im_start|>", 1)])
    assert Dialogue(Layout(opened)).render(talk("Text"), ask=True) == "<|im_start|>Text\n"


@pytest.mark.parametrize("style", ["hash", "plain"])
def test_a_tokenizer_without_eos_cannot_end_answers(style):
    prompt = dialogue(style=style)
    prompt.tokenizer.eos_token = None
    with pytest.raises(PromptError, match=r"nothing ends the assistant's turn.*Give the model's tokenizer an eos_tok"):
        prompt.encode([talk("Text:", " goal")])


# --- what sft learns ------------------------------------------------------------------------------------


def test_targets_and_weights_by_hand():
    """Turns of weight 1, 0 and 0.5."""
    turns = talk("Text", "Sports", "Text", "Politics", "Text", "Arts goal")
    weighted = tuple(replace(turn, weight={3: 0.0, 5: 0.5}.get(n, 1.0)) for n, turn in enumerate(turns))
    prompt = dialogue()
    example = learn(prompt, *weighted)
    (sequence,) = example.sequences
    words = [prompt.tokenizer.decode([sequence.tokens[i]]) for i in sequence.targets]
    assert words == ["Sports", TURN_END, "Arts", " goal", TURN_END]
    assert sequence.weights == (1.0, 1.0, 0.5, 0.5, 0.5)
    assert ConversationSft().weight(example) == 3.5 and example.num_bytes == len("Sports") + len("Arts goal")
    last = learn(prompt, *weighted, train_on="last_answer")
    assert last.sequences[0].targets == sequence.targets[2:] and last.num_bytes == len("Arts goal")
    whole = learn(prompt, *turns, train_on="everything")
    assert whole.sequences[0].targets == tuple(range(1, len(sequence.tokens)))
    text = "user\nText\nassistant\nSports\nuser\nText\nassistant\nPolitics\nuser\nText\nassistant\nArts goal"
    assert set(whole.sequences[0].weights) == {1.0} and whole.num_bytes == len(text), "special tokens spell nothing"


def test_every_token_spells_what_stands_there_headings_and_characters_of_several_tokens():
    turns = (Message("system", "Be kind."), *talk("Größe 🎻?", "Maß"))
    prompt = dialogue(style="hash")
    whole = learn(prompt, *turns, train_on="everything")
    text = prompt.render(turns, ask=False)
    assert "### Instruction" in text and text.endswith(prompt.tokenizer.eos_token)
    spelled = text.removesuffix(prompt.tokenizer.eos_token).encode()
    first = prompt.tokenizer.decode(whole.sequences[0].tokens[:1]).encode()
    assert whole.num_bytes == len(spelled) - len(first), "the first token is not predicted"


def test_the_last_answer_with_a_weight_is_the_last_and_nothing_stands_behind_it():
    turns = (*talk("Text", "Sports", "Text"), Message("assistant", "Arts", 0.0))
    example = learn(dialogue(), *turns, train_on="last_answer")
    assert replace(example, key="") == replace(learn(dialogue(), *turns[:2]), key="")


def test_an_assistant_that_opens_the_conversation_is_context():
    turns = (Message("assistant", "Politics"), *talk("Text", "Sports"))
    prompt = dialogue()
    (sequence,) = learn(prompt, *turns).sequences
    assert prompt.tokenizer.decode([sequence.tokens[i] for i in sequence.targets]) == f"Sports{TURN_END}"


def accept(record, train_on: str = "answers"):
    return ConversationSft(settings=Sft(train_on=train_on)).accept(record)


def test_rows_without_an_answer_to_learn_are_problems():
    silent = Conversation((Message("user", "Text"), Message("assistant", "Sports", 0.0)), SOURCE)
    opening = Conversation((Message("assistant", "Sports"),), SOURCE)
    wanted = Problem("nothing_to_learn", "no answer to a user's turn has a weight above 0. Leave the row out.")
    assert accept(silent) == accept(opening) == wanted
    assert accept(silent, "everything") == Problem(
        "weighted_turns",
        "its turns have weights, but train_on: everything learns every token alike. Set it to answers.",
    )
    assert accept(Document("x", SOURCE)) == Problem(
        "wrong_kind", "a document has no answer to learn. sft takes conversations, instructions and completions."
    )
    assert accept(Rating(talk("Text"), "Sports", False, SOURCE)) == Problem(
        "rated_bad", "the answer was rated bad; supervised fine-tuning would learn it. Use kto."
    )


def test_of_a_preference_the_chosen_answer_is_learnt():
    (row,) = accept(Preference(talk("Text"), talk("", "Sports")[1:], talk("", "Arts")[1:], SOURCE))
    assert row == Conversation(talk("Text", "Sports"), SOURCE)


def test_all_turns_in_one_pass_equal_one_pass_per_turn(tiny_path):
    """Log-probabilities of every target, and the summed loss, against conversations that end at each turn."""
    prompt = dialogue()
    turns = talk("Classify the text", "Sports", "a new match won", "Politics goal", "Text", "Arts")
    turns = (*turns[:3], replace(turns[3], weight=0.5), *turns[4:])
    learner = new_learner(load_model(str(tiny_path)), Lora(rank=2), 0, "auto").eval()
    method = ConversationSft()
    whole = make_batch([learn(prompt, *turns)])
    single = [make_batch([learn(prompt, *turns[: n + 1], train_on="last_answer")]) for n in (1, 3, 5)]
    with torch.no_grad():
        together, apart = learner(whole), [learner(batch) for batch in single]
    torch.testing.assert_close(together.logprobs_M, torch.cat([out.logprobs_M for out in apart]), atol=1e-5, rtol=0)
    losses = [method.loss(out, batch) for out, batch in zip(apart, single, strict=True)]
    loss = method.loss(together, whole)
    assert float(loss.total) == pytest.approx(sum(float(one.total) for one in losses), rel=1e-6)
    assert loss.weight == sum(one.weight for one in losses) == 2 + 0.5 * 3 + 2
    bits, num_bytes = method.scores(together, whole)["bits_per_byte"]
    assert float(bits) == pytest.approx(-float(together.logprobs_M.sum()) / 0.6931471805599453, rel=1e-6)
    assert num_bytes.tolist() == [len("Sports") + len("Politics goal") + len("Arts")]
