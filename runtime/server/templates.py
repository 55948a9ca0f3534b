"""Chat templates that a server is told to use: a Jinja file, a JSON file of separators, or a conversation by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from runtime.errors import ModelError
from runtime.tokenizer.chat import ChatTemplate
from runtime.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Conversation:
    """Text around the messages of each role, and the stop strings that go with it.

    system   around the system message; `default_system` is one where the conversation has none
    opening  what the answer begins after
    joined   before the user's message that follows the system's, where it is another text
    """

    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    default_system: str = ""
    stop: tuple[str, ...] = ()
    begin: str = ""
    opening: str | None = None
    joined: str | None = None

    @property
    def source(self) -> str:
        """As a Jinja template. Literals are JSON strings, which Jinja reads alike."""

        def text(value: str) -> str:
            return "{{ " + json.dumps(value, ensure_ascii=False) + " }}"

        opening = self.assistant[0].rstrip(" ") if self.opening is None else self.opening
        default = ""
        if self.default_system:
            whole = self.system[0] + self.default_system + self.system[1]
            default = "{% if messages[0].role != 'system' %}" + text(whole) + "{% endif %}"
        roles = []
        for keyword, role in (("if", "system"), ("elif", "user"), ("elif", "assistant")):
            before, after = getattr(self, role)
            lead = text(before)
            if role == "user" and self.joined is not None:
                first = "{% if loop.index0 == 1 and messages[0].role == 'system' %}"
                lead = first + text(self.joined) + "{% else %}" + lead + "{% endif %}"
            part = lead + "{{ message.content }}" + text(after)
            roles.append(f"{{% {keyword} message.role == '{role}' %}}{part}")
        refuse = "{% else %}{{ raise_exception('there is no role ' + message.role) }}{% endif %}"
        loop = "{% for message in messages %}" + "".join(roles) + refuse + "{% endfor %}"
        return (
            text(self.begin)
            + default
            + loop
            + "{% if add_generation_prompt %}"
            + text(opening)
            + "{% endif %}"
        )


def _chatml(default: str, *, blank: str = "\n", stop: tuple[str, ...]) -> Conversation:
    def around(role: str) -> tuple[str, str]:
        return f"<|im_start|>{role}\n", "<|im_end|>" + blank

    return Conversation(
        around("system"), around("user"), around("assistant"), default_system=default, stop=stop
    )


def _llama3(role: str) -> tuple[str, str]:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>"


_HELPFUL = "You are a helpful assistant."
CONVERSATIONS: Mapping[str, Conversation] = MappingProxyType(
    {
        "llama-2": Conversation(
            ("[INST] <<SYS>>\n", "\n<</SYS>>\n\n"),
            ("[INST] ", " "),
            ("[/INST] ", " </s><s>"),
            stop=("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
            joined="",
        ),
        "chatml": _chatml(_HELPFUL, stop=("<|endoftext|>", "<|im_end|>")),
        "chatml-llava": _chatml(_HELPFUL, stop=("<|endoftext|>", "<|im_end|>")),
        "qwen2-vl": _chatml(_HELPFUL, stop=("<|im_end|>",)),
        "vicuna_v1.1": Conversation(
            ("", " "),
            ("USER: ", " "),
            ("ASSISTANT: ", "</s>"),
            default_system="A chat between a curious user and an artificial intelligence assistant. The assistant gives "
            "helpful, detailed, and polite answers to the user's questions.",
        ),
        "llama_3_vision": Conversation(
            _llama3("system"),
            _llama3("user"),
            _llama3("assistant"),
            default_system="You are a helpful language and vision assistant. You are able to understand the visual content "
            "that the user provides, and assist the user with a variety of tasks using natural language.",
            stop=("<|end_of_text|>", "<|eot_id|>"),
            opening=_llama3("assistant")[0],
        ),
        "internlm2-chat": Conversation(
            ("<|im_start|>system\n", "\n"),
            ("<|im_start|>user\n", "<|im_end|>\n"),
            ("<|im_start|>assistant\n", "<|im_end|>\n"),
            stop=("<|im_end|>", "<|action_end|>"),
        ),
    }
)
_ALIASES = MappingProxyType({"llava_llama_3": "llama_3_vision"})


def read_template(name: str, tokenizer: Tokenizer) -> tuple[ChatTemplate, tuple[str, ...]]:
    """The template and its stop strings. Raises ModelError that lists the names, or says what is wrong with the file."""
    tokens = {"bos_token": tokenizer.bos or "", "eos_token": tokenizer.eos or ""}
    known = CONVERSATIONS.get(_ALIASES.get(name, name))
    if known is not None:
        return ChatTemplate(known.source, tokens), known.stop
    file = Path(name).expanduser()
    if file.suffix not in (".jinja", ".json") or not file.is_file():
        raise ModelError(
            f"--chat-template {name!r} is neither a .jinja or .json file nor one of {', '.join(CONVERSATIONS)}"
        )
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".jinja":
        return ChatTemplate(text, tokens), ()
    conversation = _from_json(text, name)
    return ChatTemplate(conversation.source, tokens), conversation.stop


def _from_json(text: str, name: str) -> Conversation:
    """Keys: system, user, assistant, sep_style, sep, stop_str, system_message."""
    try:
        data: Any = json.loads(text)
        style, separator = str(data["sep_style"]), str(data.get("sep", "\n"))
        system, user, assistant = (str(data[k]) for k in ("system", "user", "assistant"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"--chat-template {name!r}: {error}; it needs system, user, assistant and sep_style"
        ) from None
    after = {
        "ADD_COLON_SINGLE": ": ",
        "NO_COLON_SINGLE": "",
        "ADD_NEW_LINE_SINGLE": "\n",
        "CHATML": "\n",
    }
    if style not in after:
        raise ModelError(f"--chat-template {name!r}: sep_style {style!r} is none of {', '.join(after)}")
    stop = data.get("stop_str") or ()
    end = separator + ("\n" if style == "CHATML" else "")
    return Conversation(
        (system + ("\n" if style == "CHATML" else ""), end),
        (user + after[style], end),
        (assistant + after[style], end),
        default_system=str(data.get("system_message", "")),
        stop=(stop,) if isinstance(stop, str) else tuple(map(str, stop)),
    )
