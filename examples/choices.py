"""The answer is one of the given choices: the one the model finds likeliest.

sglc run examples/choices.py
"""

import sglc as sgl


@sgl.function
def pick_capital(s, country="Italy"):
    s += "Q: What is the capital of " + country + "?\n"
    s += "A: The capital of " + country + " is"
    s += sgl.select("capital", choices=[" Paris", " Rome", " Tokyo"])


@sgl.function
def pick_capital_greedily(s, country="Italy"):
    s += "Q: What is the capital of " + country + "?\n"
    s += "A: The capital of " + country + " is"
    s += sgl.gen("capital", choices=[" Paris", " Rome", " Tokyo"], choices_method=sgl.greedy_token_selection)


if __name__ == "__main__":
    engine = sgl.Engine()
    for country in ["France", "Italy", "Japan"]:
        first = pick_capital.run(country, backend=engine)["capital"]
        second = pick_capital_greedily.run(country, backend=engine)["capital"]
        print(f"{country:10}{first:10}{second}")
