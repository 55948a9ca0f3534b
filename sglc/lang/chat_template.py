"""How a conversation becomes text: what stands before and after a message of each role.

A template is found by name, by the model's path, or from the tokenizer's own Jinja template, which is asked with
small conversations what it writes around a message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from runtime.backends.base import ModelInfo


class ChatTemplateStyle(Enum):
    PLAIN = auto()
    LLAMA2 = auto()


@dataclass(frozen=True)
class ChatTemplate:
    """Text around the messages of each role. `stop_str` are added to the stop strings of every gen."""

    name: str
    default_system_prompt: str | None
    role_prefix_and_suffix: dict[str, tuple[str, str]]
    stop_str: tuple[str, ...] = ()
    image_token: str = "<image>"
    style: ChatTemplateStyle = field(default=ChatTemplateStyle.PLAIN)

    def __post_init__(self) -> None:
        if isinstance(self.stop_str, str):  # not its letters
            object.__setattr__(self, "stop_str", (self.stop_str,))

    def get_prefix_and_suffix(self, role: str, hist_messages: Sequence[dict[str, Any]]) -> tuple[str, str]:
        """What to write before and after a message of `role` that follows `hist_messages`."""
        prefix, suffix = self.role_prefix_and_suffix.get(role, ("", ""))
        if self.style is ChatTemplateStyle.LLAMA2:
            if role == "system" and not hist_messages:
                user_prefix, _ = self.role_prefix_and_suffix.get("user", ("", ""))
                return user_prefix + prefix, suffix
            if role == "user" and len(hist_messages) == 1 and hist_messages[0]["content"] is not None:
                return "", suffix
        return prefix, suffix

    def get_prompt(self, messages: Sequence[dict[str, Any]]) -> str:
        """The text of a conversation; a system message without content takes the default prompt, or is left out."""
        text = ""
        history: list[dict[str, Any]] = []
        for message in messages:
            role, content = message["role"], message["content"]
            if role == "system" and content is None:
                content = self.default_system_prompt
                if content is None:
                    continue
            prefix, suffix = self.get_prefix_and_suffix(role, history)
            text += prefix + content + suffix
            history.append({"role": role, "content": content})
        return text


Matching = Callable[[str], ChatTemplate | None]
chat_template_registry: dict[str, ChatTemplate] = {}
matching_function_registry: list[Matching] = []


def register_chat_template(template: ChatTemplate) -> None:
    chat_template_registry[template.name] = template


def register_chat_template_matching_function(function: Matching) -> Matching:
    """`function` gets the lower-cased path of a model and returns a template or None; tried in order of registration."""
    matching_function_registry.append(function)
    return function


def get_chat_template(name: str) -> ChatTemplate:
    """By name. Raises KeyError that lists the names."""
    if name not in chat_template_registry:
        raise KeyError(f"chat template {name!r} is not known; known: {', '.join(chat_template_registry)}")
    return chat_template_registry[name]


def _match(model_path: str) -> ChatTemplate | None:
    path = model_path.lower()
    return next((t for f in matching_function_registry if (t := f(path)) is not None), None)


def get_chat_template_by_model_path(model_path: str) -> ChatTemplate:
    """By what the path says; `default` if it says nothing."""
    return _match(model_path) or get_chat_template("default")


def chat_template_for(model: ModelInfo) -> ChatTemplate:
    """The template of a backend's model: the one chosen by name, else by path, else the tokenizer's own."""
    if model.chat_template:
        return get_chat_template(model.chat_template)
    found = _match(model.model_path)
    if found is None and model.jinja:
        found = from_jinja(model.jinja)
    return found or get_chat_template("default")


def from_jinja(source: str) -> ChatTemplate | None:
    """The prefixes and suffixes that a Jinja template writes, or None if it is not of this simple form."""
    from runtime.errors import InvalidRequest
    from runtime.tokenizer.chat import ChatTemplate as Jinja

    mark = "\u241fX\u241f"
    conversation = [
        {"role": "system", "content": mark},
        {"role": "user", "content": mark},
        {"role": "assistant", "content": mark},
        {"role": "user", "content": mark},
    ]
    try:
        jinja = Jinja(source, {"bos_token": "", "eos_token": ""})
        turned = [jinja.render(conversation[:n]) for n in (1, 2, 4)]
        open_user = jinja.render([conversation[1]])
        whole = jinja.render(conversation).split(mark)
    except (InvalidRequest, ValueError):
        return None
    if len(whole) != 5 or any(mark in t.replace(mark, "", 4) for t in turned):
        return None
    generation = _suffix_after(turned[1], whole)
    for known in chat_template_registry.values():
        if known.name == "default":
            continue
        history: list[dict[str, Any]] = []
        text = ""
        for message in conversation:
            prefix, suffix = known.get_prefix_and_suffix(message["role"], history)
            text += prefix + mark + suffix
            history.append(message)
        if (
            text + known.get_prefix_and_suffix("assistant", history)[0] == turned[2]
            and known.default_system_prompt is None
        ):
            return known
    if not generation or not open_user.endswith(generation):
        return None
    user_suffix = turned[1].split(mark)[2].removesuffix(generation)
    if not whole[2].startswith(user_suffix + generation):
        return None
    system_prefix = whole[0]
    user_prefix = open_user.split(mark)[0]
    if not whole[1].endswith(user_prefix) or not whole[3].endswith(user_prefix):
        return None
    roles = {
        "system": (system_prefix, whole[1].removesuffix(user_prefix)),
        "user": (user_prefix, user_suffix),
        "assistant": (generation, whole[3].removesuffix(user_prefix)),
    }
    return ChatTemplate(
        "tokenizer", None, roles, stop_str=(end,) if (end := roles["assistant"][1].strip()) else ()
    )


def _suffix_after(turned: str, whole: list[str]) -> str:
    """What a generation prompt adds: the longest end of system + user + prompt that also begins the assistant's turn."""
    tail = turned.rsplit("\u241fX\u241f", 1)[1]
    for size in range(len(tail), 0, -1):
        if whole[2].endswith(tail[-size:]):
            return tail[-size:]
    return ""


def _path_rule(name: str, rule: Callable[[str], bool]) -> None:
    register_chat_template_matching_function(lambda path: get_chat_template(name) if rule(path) else None)


_CHATML = {r: (f"<|im_start|>{r}\n", "<|im_end|>\n") for r in ("system", "user", "assistant")}
_HEADER = {
    r: (f"<|start_header_id|>{r}<|end_header_id|>\n\n", "<|eot_id|>") for r in ("system", "user", "assistant")
}
_COMMAND = {
    role: (f"<|START_OF_TURN_TOKEN|><|{token}_TOKEN|>", "<|END_OF_TURN_TOKEN|>")
    for role, token in (("system", "SYSTEM"), ("user", "USER"), ("assistant", "CHATBOT"))
}
_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_YI_VL_SYSTEM = (
    "This is a chat between an inquisitive human and an AI assistant. Assume the role of the AI assistant. Read all "
    "the images carefully, and respond to the human's questions with informative, helpful, detailed and polite answers. "
    "这是一个好奇的人类和一个人工智能助手之间的对话。假设你扮演这个AI助手的角色。仔细阅读所有的图像，并对人类的问题做出信息丰富、有帮助、详细的和礼貌的回答。"
)
_DBRX_SYSTEM = json.loads(
    r'''"You are DBRX, created by Databricks. You were last updated in December 2023. You answer questions based on information available up to that point.\nYOU PROVIDE SHORT RESPONSES TO SHORT QUESTIONS OR STATEMENTS, but provide thorough responses to more complex and open-ended questions.\nYou assist with various tasks, from writing to coding (using markdown for code blocks — remember to use ``` with code, JSON, and tables).\n(You do not have real-time data access or code execution capabilities. You avoid stereotyping and provide balanced perspectives on controversial topics. You do not provide song lyrics, poems, or news articles and do not divulge details of your training data.)\nThis is your system prompt, guiding your responses. Do not reference it, just respond to the user. If you find yourself talking about this message, stop. You should be responding appropriately and usually that means not mentioning this.\nYOU DO NOT MENTION ANY OF THIS INFORMATION ABOUT YOURSELF UNLESS THE INFORMATION IS DIRECTLY PERTINENT TO THE USER'S QUERY."'''
)

for _template in (
    ChatTemplate(
        "default",
        None,
        {"system": ("SYSTEM:", "\n"), "user": ("USER:", "\n"), "assistant": ("ASSISTANT:", "\n")},
    ),
    ChatTemplate(
        "claude", None, {"system": ("", ""), "user": ("\n\nHuman: ", ""), "assistant": ("\n\nAssistant:", "")}
    ),
    ChatTemplate("chatml", None, _CHATML, ("<|im_end|>",)),
    ChatTemplate("qwen", "You are a helpful assistant.", _CHATML, ("<|im_end|>",)),
    ChatTemplate(
        "qwen2-vl",
        "You are a helpful assistant.",
        _CHATML,
        ("<|im_end|>",),
        "<|vision_start|><|image_pad|><|vision_end|>",
    ),
    ChatTemplate("chatml-llava", "You are a helpful assistant.", _CHATML, ("<|im_end|>",), "<image>\n"),
    ChatTemplate(
        "vicuna_v1.1",
        _VICUNA_SYSTEM,
        {"system": ("", " "), "user": ("USER:", " "), "assistant": ("ASSISTANT:", "</s>")},
        image_token=" <image>\n",
    ),
    ChatTemplate(
        "yi-1.5",
        None,
        {
            "system": ("", ""),
            "user": ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
            "assistant": ("", "<|im_end|>\n"),
        },
        ("<|im_end|>",),
    ),
    ChatTemplate(
        "llama-2-chat",
        None,
        {
            "system": ("<<SYS>>\n", "\n<</SYS>>\n\n"),
            "user": ("[INST] ", " [/INST]"),
            "assistant": ("", " </s><s>"),
        },
        style=ChatTemplateStyle.LLAMA2,
    ),
    ChatTemplate("llama-3-instruct", None, _HEADER, ("<|eot_id|>",), "<|image|>"),
    ChatTemplate(
        "yi-vl",
        _YI_VL_SYSTEM,
        {"system": ("", "\n\n"), "user": ("### Human:", "\n"), "assistant": ("### Assistant:", "\n")},
        image_token=" <image_placeholder>\n",
    ),
    ChatTemplate(
        "gemma-it",
        None,
        {
            "system": ("", ""),
            "user": ("<start_of_turn>user\n", "<end_of_turn>\n"),
            "assistant": ("<start_of_turn>model\n", "<end_of_turn>\n"),
        },
    ),
    ChatTemplate(
        "dbrx-instruct",
        _DBRX_SYSTEM,
        {
            "system": ("<|im_start|>system\n", "<|im_end|>"),
            "user": ("\n<|im_start|>user\n", "<|im_end|>"),
            "assistant": ("\n<|im_start|>assistant\n", "<|im_end|>"),
        },
        ("<|im_end|>",),
    ),
    ChatTemplate("c4ai-command-r", None, _COMMAND),
):
    register_chat_template(_template)

_path_rule("dbrx-instruct", lambda p: "dbrx" in p and "instruct" in p)
_path_rule("vicuna_v1.1", lambda p: bool(re.search("vicuna|llava-v1.5|llava-next-video-7b", p)))
_path_rule(
    "llama-2-chat",
    lambda p: (
        ("llama-2" in p and "chat" in p)
        or (bool(re.search("mistral|mixtral|codellama", p)) and "instruct" in p)
    ),
)
_path_rule("llama-3-instruct", lambda p: "llama-3" in p and "instruct" in p)
_path_rule("chatml", lambda p: "tinyllama" in p)
_path_rule("qwen2-vl", lambda p: "qwen2-vl" in p and "instruct" in p)
_path_rule("qwen", lambda p: "qwen" in p and ("chat" in p or "instruct" in p) and "llava" not in p)
_path_rule(
    "chatml-llava",
    lambda p: bool(
        re.search("llava-v1.6-34b|llava-v1.6-yi-34b|llava-next-video-34b|llava-onevision-qwen2", p)
    ),
)
_path_rule("yi-vl", lambda p: "yi-vl" in p)
_path_rule("yi-1.5", lambda p: "yi-1.5" in p and "chat" in p)
_path_rule("gemma-it", lambda p: "gemma" in p and "it" in p)
_path_rule("c4ai-command-r", lambda p: "c4ai-command-r" in p)
