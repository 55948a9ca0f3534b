"""Every way to write a conversation; all four programs send the same prompt.

python examples/roles.py
"""

import sglc as sgl

QUESTION = "What is the currency of Japan?"


@sgl.function
def with_functions(s, question=QUESTION):
    s += sgl.system("You are a helpful assistant.")
    s += sgl.user(question)
    s += sgl.assistant(sgl.gen("answer", max_tokens=48, temperature=0))


@sgl.function
def with_methods(s, question=QUESTION):
    s.system("You are a helpful assistant.")
    s.user(question)
    s.assistant(sgl.gen("answer", max_tokens=48, temperature=0))


@sgl.function
def with_blocks(s, question=QUESTION):
    with s.system():
        s += "You are a helpful assistant."
    with s.user():
        s += question
    with s.assistant():
        s += sgl.gen("answer", max_tokens=48, temperature=0)


@sgl.function
def with_markers(s, question=QUESTION):
    s += sgl.system_begin() + "You are a helpful assistant." + sgl.system_end()
    s += sgl.user_begin() + question + sgl.user_end()
    s += sgl.assistant_begin() + sgl.gen("answer", max_tokens=48, temperature=0) + sgl.assistant_end()


if __name__ == "__main__":
    engine = sgl.Engine()
    for program in (with_functions, with_methods, with_blocks, with_markers):
        print(f"{program.__name__:16}{program.run(backend=engine)['answer']}")
