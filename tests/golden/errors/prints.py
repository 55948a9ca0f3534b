import sglc as sgl


@sgl.function
def noisy(s, mail):
    print(mail)
    s += mail + sgl.gen("answer")


