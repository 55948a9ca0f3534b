import sglc as sgl


@sgl.function
def reply(s, mail):
    s += mail + "\nMood:" + sgl.gen("mood", max_tokens=4)
    if s["mood"] == "angry":
        s += "calm down"


# -----
# GraphBreak: errors/branch.py:7: the value of a test of s["mood"] is not known until the model has answered, and a condition needs it. Let the model choose between fixed texts, s += select("name", [...]), or let the program run interpreted
