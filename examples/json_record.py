"""A record filled field by field: the text between the fields is the program's, so it is always valid JSON.

sglc run examples/json_record.py
"""

import json

import sglc as sgl


@sgl.function
def city_record(s, city="Paris"):
    s += "Fill in a JSON record about the city of " + city + ".\n"
    with s.var_scope("record"):
        s += '{"name": "' + city + '", "country": "'
        s += sgl.gen("country", max_tokens=12, temperature=0, stop='"')
        s += '", "language": "'
        s += sgl.gen("language", max_tokens=12, temperature=0, stop='"')
        s += '"}'


if __name__ == "__main__":
    engine = sgl.Engine()
    for state in city_record.run_batch([{"city": c} for c in ("Paris", "Rome", "Tokyo")], backend=engine):
        print(json.loads(state["record"]))
