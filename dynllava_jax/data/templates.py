"""Conversation formats: how questions and answers become the one text that a checkpoint was trained on.

The strings are facts of the formats (official `llava/conversation.py`); one character more or less changes the
token ids. A format is a handful of strings, so there is one renderer and no separator style to switch on.
"""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Literal, NamedTuple

from dynllava_jax.errors import InputError


class Turn(NamedTuple):
    """A question and its answer; no answer yet in the last turn of a prompt."""

    question: str
    answer: str | None = None


@dataclasses.dataclass(frozen=True)
class Template:
    """One conversation format.

    Attributes:
        name: what `get_template` knows it by.
        first: text before the first question, the system prompt included.
        later: text before every other question.
        cue: text between a question and its answer, up to where generation starts.
        lead: text between the cue and an answer that is already known.
        end: text after an answer.
        stop: ends generation when the model writes it; None when the end is the tokenizer's EOS anyway.
        open_cue: in place of `cue` before an answer that is still to come, where the format tells them apart.
        training: whose label mask training uses: the official `preprocess_v1`, `_llama_2`, `_mpt`, `_plain`, or the
            one for everything else ("v0").
    """

    name: str
    first: str
    later: str
    cue: str
    lead: str
    end: str
    stop: str | None = None
    open_cue: str | None = None
    training: Literal["v1", "llama_2", "mpt", "plain", "v0"] = "v1"

    def render(self, turns: Sequence[Turn | tuple[str, str | None]]) -> str:
        """The whole conversation; a last answer of None leaves it open for generation.

        Raises:
            InputError: no turn, or an answer missing before the last turn.
        """
        if not turns:
            raise InputError("A conversation needs at least one question.")
        *before, last = (Turn(*turn) for turn in turns)
        for number, turn in enumerate(before, 1):
            if turn.answer is None:
                raise InputError(f"Turn {number} of {len(turns)} has no answer; only the last one may lack it.")
        return "".join(
            (self.first if index == 0 else self.later) + self._rest(turn) for index, turn in enumerate([*before, last])
        )

    def continuation(self, question: str) -> str:
        """What a further question adds after the previous answer's `end` (a second turn on the cache)."""
        return self.later + self._rest(Turn(question))

    @property
    def marker(self) -> str:
        """What opens a user's turn after an answer ("USER:"), empty in a format without roles."""
        return self.later.rstrip()

    def _rest(self, turn: Turn) -> str:
        if turn.answer is None:
            return turn.question + (self.cue if self.open_cue is None else self.open_cue)
        return turn.question + self.cue + self.lead + turn.answer + self.end


def get_template(name: str) -> Template:
    """The format called `name`.

    Raises:
        InputError: unknown name, with the nearest ones.
    """
    if (template := _TEMPLATES.get(_ALIASES.get(name, name))) is not None:
        return template
    near = difflib.get_close_matches(name, [*_TEMPLATES, *_ALIASES], n=2)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise InputError(f"There is no conversation template {name!r}.{hint} The names are {', '.join(names())}.")


def names() -> tuple[str, ...]:
    return tuple(_TEMPLATES)


def _roles(name: str, system: str, user: str, assistant: str, separator: str, end: str) -> Template:
    """Official styles SINGLE (one separator everywhere) and TWO (another one after answers)."""
    return Template(
        name,
        first=f"{system}{separator}{user}: ",
        later=f"{user}: ",
        cue=f"{separator}{assistant}:",
        lead=" ",
        end=end,
        stop=None if end == "</s>" else end,
        training="v0" if separator == end else "v1",
    )


def _chatml(name: str, system: str) -> Template:
    """Official style MPT."""
    end, user = "<|im_end|>", "<|im_start|>user\n"
    return Template(
        name,
        first=f"<|im_start|>system\n{system}{end}{user}",
        later=user,
        cue=f"{end}<|im_start|>assistant\n",
        lead="",
        end=end,
        stop=end,
        training="mpt",
    )


def _instruction(name: str, system: str, bos: str) -> Template:
    """Official style LLAMA_2; the first `bos` is the tokenizer's."""
    preamble = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else ""
    first, later = f"[INST] {preamble}", f"{bos}[INST] "
    return Template(name, first=first, later=later, cue=" [/INST]", lead=" ", end=" </s>", training="llama_2")


_POLITE = "The assistant gives helpful, detailed, and polite answers to the {asker}'s questions."
_CURIOUS_HUMAN = "A chat between a curious human and an artificial intelligence assistant. " + _POLITE.format(
    asker="human"
)
_CURIOUS_USER = "A chat between a curious user and an artificial intelligence assistant. " + _POLITE.format(
    asker="user"
)
_LLAMA_2 = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
    "not correct. If you don't know the answer to a question, please don't share false information."
)
_LLAVA_LLAMA_2 = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
_MPT = "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers."

_TEMPLATES = {
    template.name: template
    for template in (
        _roles("vicuna_v1", _CURIOUS_USER, "USER", "ASSISTANT", " ", "</s>"),
        _roles("llava_v0", _CURIOUS_HUMAN, "Human", "Assistant", "###", "###"),
        _roles("llava_v1", _CURIOUS_HUMAN, "USER", "ASSISTANT", " ", "</s>"),
        _instruction("llama_2", _LLAMA_2, "<s>"),
        _instruction("llava_llama_2", _LLAVA_LLAMA_2, "<s>"),
        _instruction("mistral_instruct", "", ""),
        _chatml("mpt", _MPT),
        _chatml("chatml_direct", "Answer the questions."),
        # Trained on "<image>caption\n" (`preprocess_plain`) but prompted with "question\n" (`get_prompt`).
        Template("plain", first="", later="", cue="", lead="", end="\n", stop="\n", open_cue="\n", training="plain"),
    )
}
_ALIASES = {"v1": "vicuna_v1", "mistral_direct": "chatml_direct"}
