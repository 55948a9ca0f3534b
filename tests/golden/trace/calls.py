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


