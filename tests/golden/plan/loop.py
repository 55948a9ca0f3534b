import sglc as sgl


@sgl.function
def agent(s, task):
    s += "Task: " + task + "\n" + sgl.select("act", ["note", "answer"])
    while s["act"] == "note":
        s += ": " + sgl.gen("note", max_tokens=8)
        s += sgl.select("act", ["note", "answer"])
    s += ": " + sgl.gen("answer")
# -----
# plan @agent(task): 20004 calls, at most 80136 new tokens, chat template chatml
#   p0 = "Task: " %task "\n"  // uses: 7
#   p1 = p0 + output 0 ": "  // uses: 6
#   p2 = p1 + output 2  // uses: 4
#   p3 = p2 + output 3  // uses: 3
#   p4 = p3 + (earlier rounds of 4, state 0)  // uses: 2
#   p5 = p4 + ": "  // uses: 2
#   p6 = p5 + output 9  // uses: 1
#   p7 = p4 + (": " output 9 output 10 if value 8 else "")
#   p8 = p3 + (all rounds of 4, state 0)  // uses: 1
#   p9 = p8 + ": "  // uses: 1
#   p10 = p1 + (output 2 output 3 (all rounds of 4, state 0) ": " output 19 if value 1 else output 20)
#   when known
#     1: eq value 0, "note"
#     4: repeat 5 to 15, at most 10000 rounds; again with p4 = p7, value 5 = value 12, value 6 = value 13, value 7 = value 14  // if value 1
#     5: at first value 3  // if value 1
#     6: at first value 2  // if value 1
#     7: at first value 3  // if value 1
#     8: eq value 7, "note"  // if value 1
#     11: true if value 8 else false  // if value 1
#     12: value 10 if value 8 else value 5  // if value 1
#     13: value 9 if value 8 else value 6  // if value 1
#     14: value 10 if value 8 else value 7  // if value 1
#     15: repeat 4 if value 11  // if value 1
#     16: what repeat 4 has made of its value 0  // if value 1
#     17: what repeat 4 has made of its value 1  // if value 1
#     18: what repeat 4 has made of its value 2  // if value 1
#     21: value 16 if value 1 else value 0
#     22: value 17 if value 1 else nothing
#     23: value 19 if value 1 else value 20
#     prefill p1 {uses=6}
#     prefill p3 {uses=3}
#   wave 1
#     0: choose p0, "note", "answer" {name="act", method="token_length_normalized"}
#   wave 2
#     2: decode p1 {name="note", max_tokens=8}  // if value 1
#     20: decode p1 {name="answer"}  // if not value 1
#   wave 3
#     3: choose p2, "note", "answer" {name="act", method="token_length_normalized"}  // if value 1
#   wave 4
#     9: decode p5 {name="note", max_tokens=8}  // if value 8
#   wave 5
#     10: choose p6, "note", "answer" {name="act", method="token_length_normalized"}  // if value 8
#   wave 6
#     19: decode p9 {name="answer"}  // if value 1
#   variable "act" = value 21
#   variable "note" = value 22
#   variable "answer" = value 23
#   text = p10
