import sglc as sgl


@sgl.function
def joined(s, first, second):
    s += ", ".join([first, second]) + sgl.gen("answer")


# -----
# graph @joined(%first: str, %second: str) {
#   %0 = begin
#   %1 = concat "", %first
#   %2 = concat %1, ", "
#   %3 = concat %2, %second
#   %4 = text %0, %3
#   %5, %6 = gen %4 {name="answer"}
#   return %5
# }
