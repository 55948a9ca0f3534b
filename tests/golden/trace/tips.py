import sglc as sgl


@sgl.function
def tips(s, topic):
    s += "Here are two tips for " + topic + ": 1. Diet. 2. Exercise.\n\n"
    forks = s.fork(2)
    for i, f in enumerate(forks):
        f += f"Now, expand tip {i + 1} of {topic:>8} into a paragraph:\n"
        f += sgl.gen("detailed_tip", max_tokens=256, stop="\n\n", temperature=0)
    forks.join()
    s += "Tip 1:" + s["detailed_tip"][0].strip() + "\n"
    s += "Tip 2:" + s["detailed_tip"][1] + "\n"
    s += "In summary" + sgl.gen("summary", regex="[a-z ]+")


