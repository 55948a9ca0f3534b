import sglc as sgl


@sgl.function
def tips(s, topic):
    s += sgl.system("Two tips.") + sgl.user("Tips for " + topic)
    forks = s.fork(2)
    for i, f in enumerate(forks):
        f += sgl.assistant_begin() + f"Tip {i + 1}: "
        f += sgl.gen("tip", max_tokens=64, stop="\n")
    s += sgl.assistant("1. " + forks[0]["tip"] + " 2. " + forks[1]["tip"] + sgl.gen("more", dtype=int))


# -----
# plan @tips(topic): 3 calls, at most 256 new tokens, chat template chatml
#   p0 = "<|im_start|>system\n"  // uses: 3
#   p1 = p0 + "Two tips.<|im_end|>\n<|im_start|>user\n"  // uses: 3
#   p2 = p1 + "Tips for " %topic "<|im_end|>\n"  // uses: 3
#   p3 = p2 + "<|im_start|>assistant\n"  // uses: 2
#   p4 = p3 + "Tip "  // uses: 2
#   p5 = p4 + "1: "  // uses: 1
#   p6 = p4 + "2: "  // uses: 1
#   p7 = p2 + "<|im_start|>assistant\n"  // uses: 1
#   p8 = p7 + "1. " value 0 " 2. " value 1  // uses: 1
#   p9 = p8 + output 2 "<|im_end|>\n"
#   when known
#     prefill p2 {uses=3}
#     prefill p4 {uses=2}
#   wave 1
#     0: decode p5 {name="tip", max_tokens=64, stop=["\n"]}
#     1: decode p6 {name="tip", max_tokens=64, stop=["\n"]}
#   wave 2
#     2: decode p8 {name="more", dtype="int", regex="[-+]?[0-9]+[ \\n]*"}
#   variable "more" = value 2
#   text = p9
