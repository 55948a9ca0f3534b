"""Two tips, expanded side by side by a fork, then joined in one summary.

sglc run examples/tips.py
"""

import sglc as sgl


@sgl.function
def tip_suggestion(s, topic="staying healthy"):
    s += "Here are two tips for " + topic + ": 1. Balanced Diet. 2. Regular Exercise.\n\n"
    forks = s.fork(2)
    for i, f in enumerate(forks):
        f += f"Now, expand tip {i + 1} into a paragraph:\n"
        f += sgl.gen("detailed_tip", max_tokens=96, temperature=0, stop="\n\n")
    s += "Tip 1:" + forks[0]["detailed_tip"] + "\n"
    s += "Tip 2:" + forks[1]["detailed_tip"] + "\n"
    s += "In summary" + sgl.gen("summary", max_tokens=64, temperature=0, stop="\n\n")


if __name__ == "__main__":
    print(tip_suggestion.run(backend=sgl.Engine()).text())
