"""The model chooses a tool, and the program goes on as it chose.

sglc run examples/tool_use.py
sglc run examples/tool_use.py --question "What is the capital of Italy?"
"""

import sglc as sgl


@sgl.function
def tool_use(s, question="What is 12 + 35?"):
    s += "To answer this question: " + question + " "
    s += "I need to use a " + sgl.gen("tool", choices=["calculator", "search engine"]) + ". "
    if s["tool"] == "calculator":
        s += "The math expression is" + sgl.gen("expression", max_tokens=16, temperature=0, stop=["\n", "."])
    else:
        s += "The key word to search is" + sgl.gen("word", max_tokens=16, temperature=0, stop=["\n", "."])


if __name__ == "__main__":
    engine = sgl.Engine()
    for question in ["What is 12 + 35?", "What is the capital of Italy?"]:
        state = tool_use.run(question=question, backend=engine)
        argument = state["expression"] if state["tool"] == "calculator" else state["word"]
        print(f"{question:32} {state['tool']}:{argument}")
