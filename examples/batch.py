"""Many questions at once: the rows of a batch share what they can and run together.

python examples/batch.py
"""

import sglc as sgl


@sgl.function
def text_qa(s, question="What is the capital of Japan?"):
    s += "Q: What is the capital of France?\nA: The capital of France is Paris.\n"
    s += "Q: " + question + "\n"
    s += "A:" + sgl.gen("answer", max_tokens=32, temperature=0, stop="\n")


QUESTIONS = [
    "What is the capital of the United Kingdom?",
    "What is the capital of Spain?",
    "What is the capital of Japan?",
    "What is the currency of Japan?",
    "What is 21 + 34?",
]

if __name__ == "__main__":
    states = text_qa.run_batch([{"question": q} for q in QUESTIONS], backend=sgl.Engine(), progress_bar=True)
    for question, state in zip(QUESTIONS, states, strict=True):
        print(f"{question:48}{state['answer']}")
