"""Text as it is written.

sglc run examples/streaming.py --stream
"""

import sglc as sgl


@sgl.function
def capital(s, country="Germany"):
    s += sgl.system("You are a helpful assistant.")
    s += sgl.user("What is the capital of " + country + "?")
    s += sgl.assistant(sgl.gen("answer", max_tokens=48, temperature=0))


if __name__ == "__main__":
    state = capital.run(backend=sgl.Engine(), stream=True)
    for chunk in state.text_iter("answer"):
        print(chunk, end="", flush=True)
    print()
