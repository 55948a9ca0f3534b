import sglc as sgl


@sgl.function
def translate(s, text, language):
    s += f"Translate to {language}: {text}\n" + sgl.gen("translation", temperature=0)
    return s["translation"].strip()


@sgl.function
def both(s, text):
    french = translate(text, "French")
    german = translate(text, language="German")
    s += french.ret_value + " / " + german["translation"]


# -----
# graph @both(%text: str) {
#   %0 = begin
#   %1, %2, %3 = call @translate, %text, "French" {variables=["translation"]}
#   %4, %5, %6 = call @translate, %text, "German" {variables=["translation"]}
#   %7 = concat %3, " / "
#   %8 = concat %7, %5
#   %9 = text %0, %8
#   return %9
# }
# graph @translate(%text: str, %language: str) {
#   %0 = begin
#   %1 = concat "Translate to ", %language
#   %2 = concat %1, ": "
#   %3 = concat %2, %text
#   %4 = concat %3, "\n"
#   %5 = text %0, %4
#   %6, %7 = gen %5 {name="translation", temperature=0}
#   %8 = strip %7, none
#   return %6, %8
# }
