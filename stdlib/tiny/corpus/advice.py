"""Two tips on a topic, each expanded into a paragraph, and a summary of both."""

from __future__ import annotations

from random import Random

from stdlib.tiny.corpus.document import Document, ask, chat, tell

TIPS: dict[str, dict[str, tuple[str, ...]]] = {
    "staying healthy": {
        "Balanced Diet": (
            "A balanced diet gives the body what it needs.",
            "Eat fruit, vegetables and whole grains every day.",
            "Drink enough water and avoid too much sugar.",
        ),
        "Regular Exercise": (
            "Regular exercise keeps the heart and the muscles strong.",
            "Walk, run or swim for half an hour on most days.",
            "It also helps you to sleep well.",
        ),
        "Enough Sleep": (
            "Sleep gives the body time to rest.",
            "Go to bed at the same time every night.",
            "Seven to eight hours are good for most people.",
        ),
    },
    "learning a language": {
        "Daily Practice": (
            "Daily practice keeps new words in your memory.",
            "Read, write and speak a little every day.",
            "Even ten minutes a day help.",
        ),
        "Talking to People": (
            "Talking to people teaches you how the language is used.",
            "Find a partner and speak once a week.",
            "Do not be afraid of mistakes.",
        ),
        "Reading Books": (
            "Reading books shows you many new words.",
            "Start with short and simple stories.",
            "Write down the words that you do not know.",
        ),
    },
    "saving money": {
        "Make a Budget": (
            "A budget shows where your money goes.",
            "Write down what you earn and what you spend.",
            "Then decide what you can do without.",
        ),
        "Cook at Home": (
            "Cooking at home costs less than eating out.",
            "Plan your meals for the week and buy only what you need.",
            "It is good for your health too.",
        ),
    },
    "good study habits": {
        "Plan Your Time": (
            "A plan helps you to study a little every day.",
            "Write down what you want to learn and when.",
            "Take a short break after each hour.",
        ),
        "Quiet Place": (
            "A quiet place helps you to think.",
            "Turn off your phone and close the door.",
            "Keep your desk clean.",
        ),
    },
    "a safe journey": {
        "Pack Light": (
            "A light bag is easy to carry.",
            "Take only what you need and leave the rest at home.",
            "Keep your papers in a safe place.",
        ),
        "Check the Weather": (
            "Check the weather before you leave.",
            "Rain and snow can make the roads slow.",
            "Take warm clothes with you.",
        ),
    },
    "a beautiful garden": {
        "Water the Plants": (
            "Plants need water, above all in summer.",
            "Water them early in the morning.",
            "Do not give them too much.",
        ),
        "Good Soil": (
            "Good soil feeds the plants.",
            "Mix it with compost in spring.",
            "Remove the weeds every week.",
        ),
    },
}


def _paragraph(sentences: tuple[str, ...]) -> str:
    return " ".join(sentences)


def _summary(first: str, second: str, topic: str) -> str:
    return f"{first.lower()} and {second.lower()} are two good ways for {topic}."


def tips(rng: Random) -> Document:
    """The list, one tip expanded, as a branch of a fork sees it; sometimes both tips and the summary."""
    topic = rng.choice(list(TIPS))
    first, second = rng.sample(list(TIPS[topic]), 2)
    head = f"Here are two tips for {topic}: 1. {first}. 2. {second}.\n\n"
    texts = [_paragraph(TIPS[topic][name]) for name in (first, second)]
    given = [_paragraph(TIPS[topic][name][: rng.randint(1, 3)]) for name in (first, second)]
    gap = rng.choice(("", " "))
    if rng.random() < 0.6:
        i = rng.randint(0, 1)
        return (ask(f"{head}Now, expand tip {i + 1} into a paragraph:\n"), tell(f"{texts[i]}\n\n"))
    return (
        ask(f"{head}Tip 1:{gap}{given[0]}\nTip 2:{gap}{given[1]}\nIn summary"),
        tell(f", {_summary(first, second, topic)}\n\n"),
    )


def asked(rng: Random) -> Document:
    """Tips asked for in a conversation, then one of them expanded."""
    topic = rng.choice(list(TIPS))
    first, second = rng.sample(list(TIPS[topic]), 2)
    question = rng.choice(
        ("Give me two tips for {t}.", "What are two tips for {t}?", "List two tips for {t}.")
    ).format(t=topic)
    i = rng.randint(0, 1)
    follow = rng.choice(
        ("Expand tip {i}.", "Tell me more about tip {i}.", "Please expand tip {i} into a paragraph.")
    ).format(i=i + 1)
    return chat(
        [(question, f"1. {first}. 2. {second}."), (follow, _paragraph(TIPS[topic][(first, second)[i]]))]
    )
