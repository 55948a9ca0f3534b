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


# -----
# graph @roles(%question: str) {brief="True"} {
#   %0 = begin
#   %1 = role_begin %0 {role="system"}
#   %2 = text %1, "You are a helpful assistant."
#   %3 = role_end %2 {role="system"}
#   %4 = role_begin %3 {role="user"}
#   %5 = text %4, %question
#   %6 = text %5, " Be brief."
#   %7 = role_end %6 {role="user"}
#   %8 = role_begin %7 {role="assistant"}
#   %9 = scope_begin %8 {name="turn"}
#   %10, %11: list<str> = gen %9 {name="answer", n=2}
#   %12: str = item %11, 0
#   %13: str = item %11, 1
#   %14, %15 = select %10, "yes", "no" {name="sure"}
#   %16, %17 = scope_end %14 {name="turn"}
#   %18 = role_end %16 {role="assistant"}
#   %19 = set_var %18, %13 {name="kept"}
#   %20 = pack %15, 0 {kind="tuple"}
#   return %19, %20
# }
