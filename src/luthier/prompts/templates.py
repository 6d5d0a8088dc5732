"""Chat templates of our own, and the template that writes what a model was trained with."""

from __future__ import annotations

import re
from typing import Any

from luthier.errors import ModelError
from luthier.prompts.dialogue import Dialogue
from luthier.prompts.layout import Layout, opening_tokens
from luthier.recipe.template import ChatTemplate
from luthier.records import INSTRUCTION_HEADING, RESPONSE_HEADING

FILE = "chat_template.jinja"  # where transformers and servers look for it
LINE = "{{ '\\n' }}"  # Jinja drops a line break behind a block
TURNS = "{% for message in messages %}"
ASK = "{% endfor %}{% if add_generation_prompt %}"
CHATML = (
    f"{TURNS}<|im_start|>{{{{ message['role'] }}}}{LINE}{{{{ message['content'] }}}}<|im_end|>{LINE}"
    f"{ASK}<|im_start|>assistant{LINE}{{% endif %}}"
)
LLAMA3 = (
    "{{ bos_token }}" + f"{TURNS}<|start_header_id|>{{{{ message['role'] }}}}<|end_header_id|>{LINE}{LINE}"
    "{{ message['content'] | trim }}<|eot_id|>"
    f"{ASK}<|start_header_id|>assistant<|end_header_id|>{LINE}{LINE}{{% endif %}}"
)


def layout_of(tokenizer: Any, settings: ChatTemplate) -> Layout:
    """The tokenizer with the template and the arguments of a recipe.

    Raises:
        ModelError: an argument that the template does not know.
    """
    layout = Layout(tokenizer, named(settings.template, tokenizer), settings.template_arguments)
    source = layout.source
    unread = [name for name in settings.template_arguments if not re.search(rf"\b{re.escape(name)}\b", source)]
    if unread:
        raise ModelError(
            f"prompt.template_arguments: the chat template reads no {', '.join(unread)}. Leave it out, or give a "
            "template that does."
        )
    return layout


def named(template: str, tokenizer: Any) -> str:
    """The text of a template that is named."""
    texts = {"chatml": CHATML, "llama3": LLAMA3}
    return own_layout("hash", tokenizer) if template == "alpaca" else texts.get(template, template)


def own_layout(style: str, tokenizer: Any) -> str:
    """The template of a layout of our own: what `Dialogue.part` writes."""
    opening = "{{ bos_token }}" if opening_tokens(tokenizer) else ""
    others = {
        "hash": "{% elif message['role'] == 'system' %}{{ message['content'] }}" + LINE * 2 + "{% else %}"
        + lines(INSTRUCTION_HEADING) + "{{ message['content'] }}" + LINE * 2 + lines(RESPONSE_HEADING),
        "plain": "{% elif message['role'] == 'system' %}{{ message['content'] }}" + LINE * 2
        + "{% else %}{{ message['content'] }}",
        "chat": "{% else %}{{ message['content'] }}" + LINE,
    }[style]  # fmt: skip
    answer = "{% if message['role'] == 'assistant' %}{{ message['content'] }}{{ eos_token }}"
    return f"{opening}{TURNS}{answer}{others}{{% endif %}}{{% endfor %}}"


def lines(text: str) -> str:
    """A text with its line breaks as Jinja keeps them."""
    return text.replace("\n", LINE)


def template_left(dialogue: Dialogue) -> str | None:
    """The chat template that asks a model as it was trained, its arguments and its system message in it.

    None where that is the template that the model brings. Of a model with several templates none can be made.
    """
    layout = dialogue.layout
    source = layout.own or layout.tokenizer.chat_template
    if not dialogue.templated:
        source = own_layout(dialogue.style, layout.tokenizer)
    if not isinstance(source, str):
        return None
    before = ""
    for name, value in layout.arguments.items() if dialogue.templated else ():
        before += f"{{% if {name} is not defined %}}{{% set {name} = {value!r} %}}{{% endif %}}"
    if dialogue.system:
        turn = {"role": "system", "content": dialogue.system}  # Python spells it as Jinja reads it
        before += f"{{% if messages[0]['role'] != 'system' %}}{{% set messages = [{turn!r}] + messages %}}{{% endif %}}"
    whole = before + source
    return None if whole == layout.tokenizer.chat_template else whole
