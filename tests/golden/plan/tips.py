import sglc as sgl


@sgl.function
def tips(s, topic):
    s += sgl.system("Two tips.") + sgl.user("Tips for " + topic)
    forks = s.fork(2)
    for i, f in enumerate(forks):
        f += sgl.assistant_begin() + f"Tip {i + 1}: "
        f += sgl.gen("tip", max_tokens=64, stop="\n")
    s += sgl.assistant("1. " + forks[0]["tip"] + " 2. " + forks[1]["tip"] + sgl.gen("more", dtype=int))


