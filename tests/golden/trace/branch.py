import sglc as sgl


@sgl.function
def reply(s, mail):
    s += mail + "\nMood:" + sgl.gen("mood", max_tokens=4)
    if s["mood"] == "angry":
        s += "calm down"


# -----
# graph @reply(%mail: str) {
#   %0 = begin
#   %1 = concat %mail, "\nMood:"
#   %2 = text %0, %1
#   %3, %4 = gen %2 {name="mood", max_tokens=4}
#   %5 = eq %4, "angry"
#   %7: state = if %5 {
#     %6 = text %3, "calm down"
#     yield %6
#   } else {
#     yield %3
#   }
#   return %7
# }
