import sglc as sgl


@sgl.function
def joined(s, first, second):
    s += ", ".join([first, second]) + sgl.gen("answer")


