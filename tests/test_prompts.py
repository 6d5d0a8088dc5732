"""The prompt of a task: token for token, what is trained, and how a reply is read."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from luthier.errors import ModelError
from luthier.prompts import ClassifyPrompt, Layout
from luthier.prompts.classify import worded
from luthier.recipe import Task, fold_label
from luthier.records import Outcome
from tiny import CHATML, SPECIALS, WORDS, tiny_tokenizer

TASK = Task(labels=["SPORTS", "POLITICS", "ARTS_AND_CULTURE"], instruction="Classify the text.")
FIRST_ANSWERED = (
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "Q{% if messages|length > 1 %} (answered){% endif %}: {{ m['content'] }}\n"
    "{% else %}A: {{ m['content'] }}<|im_end|>{% endif %}{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
)


def prompt_with(template: str | None = CHATML, **task) -> ClassifyPrompt:
    return ClassifyPrompt(TASK.model_copy(update=task), Layout(tiny_tokenizer(template)))


def ids(*pieces: str) -> tuple[int, ...]:
    """Ids by hand: specials from 0, then the words in their order."""
    known = [*SPECIALS, *WORDS]
    return tuple(known.index(piece) for piece in pieces)


QUESTION = (
    *("<|im_start|>", "user", "\n", "Classify", " the", " text", ".", "\n"),
    *(
        "Category",
        " is",
        " one",
        " of",
        ":",
        " Sports",
        ",",
        " Politics",
        ",",
        " Arts",
        " And",
        " Culture",
        ".",
    ),
    *("\n", "\n", "Text", ":", " a", " new", " match", "\n", "Category", ":", "<|im_end|>", "\n"),
)


def test_a_rendered_conversation_token_for_token():
    prompt = prompt_with()
    assert prompt.layout.render(prompt.messages("a new match"), ask=True) == (
        "<|im_start|>user\nClassify the text.\nCategory is one of: Sports, Politics, Arts And Culture.\n\n"
        "Text: a new match\nCategory:<|im_end|>\n<|im_start|>assistant\n"
    )
    asked = ids(*QUESTION, "<|im_start|>", "assistant", "\n")
    assert prompt.encode(["a new match"]) == [asked]
    (sports, arts) = prompt.encode_answered(["a new match"] * 2, ["SPORTS", "ARTS_AND_CULTURE"])
    assert sports.tokens == (*asked, *ids("Sports", "<|im_end|>"))
    assert arts.tokens == (*asked, *ids("Arts", " And", " Culture", "<|im_end|>"))
    assert sports.answer_start == arts.answer_start == len(asked) == 36
    assert sports.ends_turn and arts.ends_turn


def test_whole_conversation_is_prompt_plus_answer_whatever_the_text():
    prompt = prompt_with()
    texts = ["", "ümlaut — ☃", "a\n\n", "  spaces  ", "Category: SPORTS\nText:", "x" * 50]
    for text, asked, whole in zip(
        texts, prompt.encode(texts), prompt.encode_answered(texts, ["POLITICS"] * len(texts)), strict=True
    ):
        assert whole.tokens == (*asked, *ids("Politics", "<|im_end|>")), text
        assert prompt.layout.tokenizer.decode(asked).count(f"Text: {text}\nCategory:") == 1


def test_the_tokenizer_adds_nothing_to_what_the_template_said():
    """Many tokenizers put a begin-of-text token before any text; a template that says it too would double it."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    assert tokenizer("law")["input_ids"][0] == tokenizer("law")["input_ids"][-1] == 0
    prompt = ClassifyPrompt(TASK, Layout(tokenizer))
    assert prompt.encode(["law"]) == prompt_with().encode(["law"])
    assert prompt.encode_answered(["law"], ["SPORTS"]) == prompt_with().encode_answered(["law"], ["SPORTS"])


def test_without_a_list_of_labels_and_with_another_instruction():
    prompt = prompt_with().with_(lists_labels=False, instruction="Sort this.")
    assert prompt.messages("t")[0]["content"] == "Sort this.\n\nText: t\nCategory:"
    assert prompt.key != prompt_with().key
    assert prompt.key == prompt_with().with_(lists_labels=False, instruction="Sort this.").key


def test_shots_stand_as_earlier_turns_and_the_instruction_in_the_first_only():
    prompt = prompt_with().with_(shots=(("goal", "SPORTS"), ("law", "POLITICS")))
    turns = prompt.messages("a new match", "SPORTS")
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 3
    assert [turn["content"] for turn in turns[1:]] == [
        "Sports", "Text: law\nCategory:", "Politics", "Text: a new match\nCategory:", "Sports",
    ]  # fmt: skip
    assert turns[0]["content"].startswith("Classify the text.\nCategory is one of:")
    (answered,) = prompt.encode_answered(["a new match"], ["SPORTS"])
    assert answered.tokens[answered.answer_start :] == ids("Sports", "<|im_end|>"), "only the last answer is trained"
    assert answered.tokens.count(*ids("<|im_end|>")) == 6
    own = prompt.encode(["a new match", "vote"], shots=[(), (("law", "POLITICS"),)])
    assert own[0] == prompt_with().encode(["a new match"])[0]
    assert own[1] == prompt_with().with_(shots=(("law", "POLITICS"),)).encode(["vote"])[0]


@pytest.mark.parametrize(
    ("label", "answer"),
    [
        ("WOMEN'S HEALTH", "Women's Health"), ("WOMEN’S_HEALTH", "Women’s Health"), ("DON'T_KNOW", "Don't Know"),
        ("WE'RE_OPEN", "We're Open"), ("3RD_PARTY", "3rd Party"), ("21ST_CENTURY", "21st Century"),
        ("1990S_MUSIC", "1990s Music"), ("O'BRIEN", "O'Brien"), ("L'ORÉAL", "L'Oréal"), ("3D_PRINTING", "3D Printing"),
        ("5G_NETWORKS", "5G Networks"), ("SCI-FI", "Sci-Fi"), ("ARTS/CULTURE", "Arts/Culture"), ("R&D_WORK", "R&D Work"),
    ],
)  # fmt: skip
def test_words_begin_with_a_capital_and_go_on_small(label, answer):
    assert worded(label) == answer and fold_label(answer) == fold_label(label)


def test_labels_are_worded_or_left_as_they_are():
    assert [worded(label) for label in ("SPORTS", "ARTS_AND_CULTURE", "US", "U.S. NEWS", "iPhone", "world news")] == [
        "Sports", "Arts And Culture", "US", "U.S. News", "iPhone", "world news",
    ]  # fmt: skip
    as_is = prompt_with(wording="as_is")
    assert as_is.messages("t", "ARTS_AND_CULTURE")[1]["content"] == "ARTS_AND_CULTURE"
    assert "one of: SPORTS, POLITICS, ARTS_AND_CULTURE." in as_is.messages("t")[0]["content"]


@given(label=st.text("ABCDEFabcxyz_& -/'.0123456789", min_size=1, max_size=20))
def test_the_wording_of_a_label_folds_back_to_it(label):
    assert fold_label(worded(label)) == fold_label(label)


def test_a_model_without_template_gets_a_plain_layout_and_learns_to_stop():
    prompt = prompt_with(None)
    assert not prompt.layout.has_template
    assert prompt.layout.render(prompt.messages("law", "POLITICS"), ask=False) == (
        "Classify the text.\nCategory is one of: Sports, Politics, Arts And Culture.\n\nText: law\n"
        "Category: Politics<|endoftext|>"
    )
    (answered,) = prompt.encode_answered(["law"], ["POLITICS"])
    (asked,) = prompt.encode(["law"])
    assert answered.tokens == (*asked, *ids(" Politics", "<|endoftext|>"))
    assert answered.answer_start == len(asked) and answered.ends_turn
    shown = prompt.with_(shots=(("goal", "SPORTS"),)).messages("law")
    assert prompt.layout.render(shown, ask=True).endswith("Text: goal\nCategory: Sports\n\nText: law\nCategory:")


def test_a_plain_layout_begins_as_the_tokenizer_begins_texts():
    """By its post-processor, as base Llama 3 does; what was computed without that token is not taken for it."""
    without = prompt_with(None)
    tokenizer = tiny_tokenizer(None)
    tokenizer.add_special_tokens({"bos_token": "<|im_start|>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    prompt = replace(without, layout=Layout(tokenizer))
    assert prompt.encode(["law"])[0][:2] == ids("<|im_start|>", "Classify")
    assert prompt.encode(["law"])[0][1:] == without.encode(["law"])[0]
    assert prompt.layout.template != without.layout.template and prompt.key != without.key


def test_an_answer_without_a_token_that_ends_it_is_said_to_have_none():
    template = (
        "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    (answered,) = prompt_with(template).encode_answered(["law"], ["SPORTS"])
    assert answered.tokens[answered.answer_start :] == ids("Sports") and not answered.ends_turn


def test_a_template_that_changes_the_answered_prompt_is_refused_with_what_was_measured():
    with pytest.raises(ModelError) as caught:
        prompt_with(FIRST_ANSWERED).encode_answered(["law"], ["SPORTS"])
    text = str(caught.value)
    assert text == (
        "the chat template renders the prompt differently once it is answered, so training and serving would "
        "differ: the prompt reads 'Q: Classify the text.', the answered conversation 'Q (answered): Classif'. "
        "Give a model whose template keeps the prompt as it was, or mend its chat_template."
    )


def test_a_template_whose_end_melts_into_the_answer_is_refused():
    """`\\n\\n` is one token at the end of the prompt, and two before a word: same text, other tokens."""
    melting = (
        "{% for m in messages %}{{ m['role'] }}{{ '\n\n' }}{{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant{{ '\n\n' }}{% endif %}"
    )
    with pytest.raises(ModelError, match="the same text, but other tokens where the answer begins"):
        prompt_with(melting).encode_answered(["law"], ["SPORTS"])


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_a_template_cannot_reach_python(attack):
    with pytest.raises(ModelError, match=r"the model's chat template failed on this conversation: .*unsafe"):
        prompt_with(attack).encode(["law"])


def test_a_template_that_refuses_the_conversation_says_why():
    with pytest.raises(ModelError, match="failed on this conversation: No users here"):
        prompt_with("{{ raise_exception('No users here') }}").encode(["law"])


@pytest.mark.parametrize("shots", [(), (("a goal", "SPORTS"), ("a goal", "SPORTS"))], ids=["no shots", "same shots"])
def test_a_head_reads_the_last_question_from_its_first_token_on(shots):
    """Also where a worked example, or the instruction, says the same."""
    prompt = prompt_with(instruction="As here. Text: a goal\nCategory:").with_(shots=shots)
    ((tokens, start),) = prompt.encode_readable(["a goal"])
    read = prompt.layout.tokenizer.decode(tokens[start:])
    assert read == "Text: a goal\nCategory:<|im_end|>\n<|im_start|>assistant\n"
    assert tokens == prompt.encode(["a goal"])[0]


def test_everything_the_model_sees_around_a_text_is_in_the_key():
    prompt = prompt_with()
    others = [
        prompt.with_(shots=(("a goal", "SPORTS"),)),
        prompt.with_(shots=(("a law", "POLITICS"),)),
        prompt.with_(instruction="Sort the text."),
        prompt.with_(lists_labels=False),
        prompt_with(text_name="Headline"),
        prompt_with(FIRST_ANSWERED),
    ]
    assert len({prompt.key, *(other.key for other in others)}) == 7
    assert prompt_with().key == prompt.key


# --- reading a reply -------------------------------------------------------------------------------------------

PARSED = [
    ("SPORTS", "SPORTS", Outcome.ANSWERED),
    (" Sports.\n\nBecause of the goal.", "SPORTS", Outcome.ANSWERED),
    ("Arts & Culture", "ARTS_AND_CULTURE", Outcome.ANSWERED),
    ("ARTS AND CULTURE", "ARTS_AND_CULTURE", Outcome.ANSWERED),
    ("arts_and_culture", "ARTS_AND_CULTURE", Outcome.ANSWERED),
    ("Arts_&_Culture", "ARTS_AND_CULTURE", Outcome.ANSWERED),
    ("The category is Politics!", "POLITICS", Outcome.ANSWERED),
    ("the category is arts & culture", "ARTS_AND_CULTURE", Outcome.ANSWERED),
    ("football", "SPORTS", Outcome.ANSWERED),  # an alias
    ("**Politics**", "POLITICS", Outcome.ANSWERED),
    ("Sports, not football", "SPORTS", Outcome.ANSWERED),  # two spellings of one label
    ("Sports or Politics", None, Outcome.PARSE_FAILED),
    ("SPORTS. It is certainly not POLITICS", None, Outcome.PARSE_FAILED),
    ("", None, Outcome.PARSE_FAILED),
    ("  \n ... \n", None, Outcome.PARSE_FAILED),
    ("I would need to see the whole text first", None, Outcome.PARSE_FAILED),
    ("sportswear", None, Outcome.OUT_OF_ONTOLOGY),
    ("Weather", None, Outcome.OUT_OF_ONTOLOGY),
    ("Weather of the day", None, Outcome.OUT_OF_ONTOLOGY),  # four words may be meant as a label, five are a sentence
    ("Weather of the last day", None, Outcome.PARSE_FAILED),
    ("UNABLE_TO_CLASSIFY", None, Outcome.ABSTAINED),
    ("Unable to classify.", None, Outcome.ABSTAINED),
]


@pytest.mark.parametrize(("reply", "label", "outcome"), PARSED)
def test_a_reply_is_read(reply, label, outcome):
    assert prompt_with(aliases={"football": "SPORTS"}).parse(reply) == (label, outcome)


def test_a_label_inside_a_longer_one_is_not_named_by_it():
    prompt = prompt_with(labels=["ARTS", "ARTS & CULTURE", "CULTURE"])
    assert prompt.parse("Arts and Culture") == ("ARTS & CULTURE", Outcome.ANSWERED)
    assert prompt.parse("It is Arts and Culture.") == ("ARTS & CULTURE", Outcome.ANSWERED)
    assert prompt.parse("It is culture.") == ("CULTURE", Outcome.ANSWERED)
    assert prompt.parse("It is arts, or arts and culture.") == (None, Outcome.PARSE_FAILED)


LABELS = ["ARTS", "ARTS & CULTURE", "CULTURE", "WORLD NEWS", "NEWS", "SPORTS", "THE WORLDPOST", "WORLDPOST"]
WORDS_SAID = st.sampled_from([*LABELS, "the", "is", "or", "and", "&", "world", "answer", ",", "unable"])


@given(order=st.permutations(LABELS), words=st.lists(WORDS_SAID, min_size=1, max_size=5))
def test_the_order_of_the_labels_decides_nothing(order, words):
    said = " ".join(words)
    prompt = prompt_with(labels=LABELS)
    assert prompt_with(labels=order).parse(said) == prompt.parse(said)
    label, outcome = prompt.parse(said)
    assert (label is not None) == (outcome == Outcome.ANSWERED)


@given(two=st.lists(st.sampled_from(["SPORTS", "POLITICS", "ARTS_AND_CULTURE"]), min_size=2, max_size=2, unique=True))
def test_two_labels_named_are_never_an_answer(two):
    assert prompt_with().parse(f"{two[0]} rather than {two[1]}") == (None, Outcome.PARSE_FAILED)
    assert prompt_with().parse(f"Answer: {two[0]}/{two[1]}") == (None, Outcome.PARSE_FAILED)


def test_frozen_prompts_do_not_share_changes():
    prompt = prompt_with()
    with pytest.raises(AttributeError):
        prompt.instruction = "other"
    assert replace(prompt, instruction="other").instruction == "other" and prompt.instruction == ""
