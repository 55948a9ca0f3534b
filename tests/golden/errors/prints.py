import sglc as sgl


@sgl.function
def noisy(s, mail):
    print(mail)
    s += mail + sgl.gen("answer")


# -----
# GraphBreak: errors/prints.py:6: noisy is not traced: print(...) is called, whose effect happens outside of the state
