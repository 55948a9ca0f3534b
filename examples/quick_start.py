"""A conversation of two questions, the second of which leans on the first answer.

sglc run examples/quick_start.py
sglc run examples/quick_start.py --country Japan
sglc compile examples/quick_start.py --emit ir
"""

import sglc as sgl


@sgl.function
def multi_turn_question(s, country="France"):
    s += sgl.system("You are a helpful assistant.")
    s += sgl.user("What is the capital of " + country + "?")
    s += sgl.assistant(sgl.gen("capital", max_tokens=48, temperature=0))
    s += sgl.user("List two sights there.")
    s += sgl.assistant(sgl.gen("sights", max_tokens=64, temperature=0))


if __name__ == "__main__":
    state = multi_turn_question.run(backend=sgl.Engine())
    for message in state.messages():
        print(f"{message['role']}: {message['content']}")
