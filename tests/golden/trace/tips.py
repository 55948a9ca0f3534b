import sglc as sgl


@sgl.function
def tips(s, topic):
    s += "Here are two tips for " + topic + ": 1. Diet. 2. Exercise.\n\n"
    forks = s.fork(2)
    for i, f in enumerate(forks):
        f += f"Now, expand tip {i + 1} of {topic:>8} into a paragraph:\n"
        f += sgl.gen("detailed_tip", max_tokens=256, stop="\n\n", temperature=0)
    forks.join()
    s += "Tip 1:" + s["detailed_tip"][0].strip() + "\n"
    s += "Tip 2:" + s["detailed_tip"][1] + "\n"
    s += "In summary" + sgl.gen("summary", regex="[a-z ]+")


# -----
# constraint @c0 = regex "[a-z ]+"
# graph @tips(%topic: str) {
#   %0 = begin
#   %1 = concat "Here are two tips for ", %topic
#   %2 = concat %1, ": 1. Diet. 2. Exercise.\n\n"
#   %3 = text %0, %2
#   %4, %5 = fork %3
#   %6 = format %topic, "", ">8"
#   %7 = concat "Now, expand tip 1 of ", %6
#   %8 = concat %7, " into a paragraph:\n"
#   %9 = text %4, %8
#   %10, %11 = gen %9 {name="detailed_tip", max_tokens=256, stop=["\n\n"], temperature=0}
#   %12 = format %topic, "", ">8"
#   %13 = concat "Now, expand tip 2 of ", %12
#   %14 = concat %13, " into a paragraph:\n"
#   %15 = text %5, %14
#   %16, %17 = gen %15 {name="detailed_tip", max_tokens=256, stop=["\n\n"], temperature=0}
#   %18 = join %3, %10, %16
#   %19 = strip %11, none
#   %20 = concat "Tip 1:", %19
#   %21 = concat %20, "\n"
#   %22 = text %18, %21
#   %23 = concat "Tip 2:", %17
#   %24 = concat %23, "\n"
#   %25 = text %22, %24
#   %26 = text %25, "In summary"
#   %27, %28 = gen %26 {name="summary", constraint=@c0}
#   return %27
# }
