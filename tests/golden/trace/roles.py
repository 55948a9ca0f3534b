import sglc as sgl


@sgl.function
def roles(s, question, brief=True):
    s += sgl.system("You are a helpful assistant.")
    with s.user():
        s += question
        if brief:
            s += " Be brief."
    with s.assistant():
        with s.var_scope("turn"):
            s += sgl.gen("answer", n=2)
            s += sgl.select("sure", ["yes", "no"])
    s["kept"] = s["answer"][1]
    return s["sure"], len(question) if not brief else 0


