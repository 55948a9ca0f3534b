import sglc as sgl


@sgl.function
def reply(s, mail):
    s += mail + "\nMood:" + sgl.gen("mood", max_tokens=4)
    if s["mood"] == "angry":
        s += "calm down"


