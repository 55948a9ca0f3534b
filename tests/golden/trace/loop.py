import sglc as sgl


@sgl.function
def agent(s, task):
    s += "Task: " + task + "\n" + sgl.select("act", ["note", "answer"])
    while s["act"] == "note":
        s += ": " + sgl.gen("note", max_tokens=8)
        s += sgl.select("act", ["note", "answer"])
    s += ": " + sgl.gen("answer")
# -----
# graph @agent(%task: str) {
#   %0 = begin
#   %1 = concat "Task: ", %task
#   %2 = concat %1, "\n"
#   %3 = text %0, %2
#   %4, %5 = select %3, "note", "answer" {name="act"}
#   %6 = eq %5, "note"
#   %34: state = if %6 {
#     %7 = text %4, ": "
#     %8, %9 = gen %7 {name="note", max_tokens=8}
#     %10, %11 = select %8, "note", "answer" {name="act"}
#     %28: state, %29: str = loop %10, %11 {maximum=10000} (%21: state, %22: str) {
#       %12 = eq %22, "note"
#       %24: bool, %25: state, %26: str = if %12 {
#         %13 = text %21, ": "
#         %14, %15 = gen %13 {name="note", max_tokens=8}
#         %16, %17 = select %14, "note", "answer" {name="act"}
#         yield true, %16, %17
#       } else {
#         yield false, %21, %22
#       }
#       yield %24, %25, %26
#     }
#     %18 = text %28, ": "
#     %19, %20 = gen %18 {name="answer"}
#     yield %19
#   } else {
#     %31 = text %4, ": "
#     %32, %33 = gen %31 {name="answer"}
#     yield %32
#   }
#   return %34
# }
