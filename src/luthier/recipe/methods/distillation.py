"""Settings of distillation."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from luthier.recipe.base import Variable
from luthier.recipe.methods.base import MethodPart

ENDPOINT_TOKENS = 20  # most candidates of one position that a server of the OpenAI protocol gives


class Distil(MethodPart):
    """Learn from a teacher's probabilities, or from its answers."""

    kind: Literal["distil"] = "distil"
    teacher: str = Field(
        description="The teacher: a model as for `model`, or an OpenAI-compatible address (http://HOST:PORT/v1#NAME)."
    )
    adapter: str | None = Field(None, description="Folder of an adapter that the teacher wears.")
    key_variable: Variable | None = Field(
        None, description="Environment variable that holds the key of the teacher's address; without it none is sent."
    )
    what: Literal["forward_kl", "reverse_kl", "answers"] = Field(
        "forward_kl", description="KL(teacher || student), KL(student || teacher), or the teacher's own answers."
    )
    top_k: int = Field(
        16, ge=1, description="Tokens of the teacher's distribution that are kept for each position; the rest is one."
    )
    temperature: float = Field(1.0, gt=0, strict=False, description="Temperature of both distributions.")
    hard_weight: float = Field(
        0.0, ge=0, le=1, strict=False, description="Share of the loss that is cross-entropy on the rows' own answers."
    )
    online: bool = Field(
        False, description="Ask the teacher at each step, instead of once before training with its candidates kept."
    )
    max_answer_tokens: int = Field(
        256, ge=1, description="Most tokens of a teacher's answer (`answers`); what is cut off there is dropped."
    )
    answer_temperature: float = Field(
        0.0, ge=0, strict=False, description="Temperature at which the teacher answers (`answers`); 0: likeliest token."
    )
    tune: ClassVar[dict[str, Any]] = {"epochs": 2.0, "learning_rate": 3e-4}

    @property
    def address(self) -> tuple[str, str] | None:
        """Base address and the server's name of the model, where the teacher is behind one."""
        if not self.teacher.startswith(("http://", "https://")):
            return None
        address, _, name = self.teacher.partition("#")
        return address, name

    @model_validator(mode="after")
    def agreed(self) -> Distil:
        """Nothing that is set may be without effect."""
        if self.address is None:
            problem = "key_variable belongs to a teacher behind an address" if self.key_variable else ""
        else:
            problem = self.address_problem(self.address[1])
        if not problem and self.what == "answers":
            idle = [name for name in ("temperature", "hard_weight", "top_k", "online") if self.changed(name)]
            problem = f"what: answers takes the teacher's text alone; leave {', '.join(idle)} out" if idle else ""
        elif not problem:
            idle = [name for name in ("max_answer_tokens", "answer_temperature") if self.changed(name)]
            problem = f"{', '.join(idle)}: only what: answers has answers written" if idle else ""
        if problem:
            raise ValueError(problem)
        return self

    def address_problem(self, name: str) -> str:
        """What a server of the OpenAI protocol cannot do."""
        if not name:
            return 'a teacher behind an address needs the name of its model: "http://HOST:PORT/v1#NAME"'
        if "?" in self.teacher or "@" in self.teacher.partition("#")[0]:
            return "a teacher's address has no key, name or ? in it; put a key into an environment variable"
        if self.adapter:
            return "adapter: a server wears its own; leave it out and name the server's model with the adapter"
        if self.what != "answers" and self.top_k > ENDPOINT_TOKENS:
            return f"top_k is {self.top_k}, but a server gives at most {ENDPOINT_TOKENS} candidates of a position"
        if self.temperature != 1:
            return "a server gives probabilities at temperature 1 only; set temperature: 1"
        return "online needs a teacher on this machine; leave online out" if self.online else ""

    def changed(self, name: str) -> bool:
        """Whether a setting differs from its default."""
        return bool(getattr(self, name) != type(self).model_fields[name].default)
