from pathlib import Path

from helpers.data import load_rows, to_chat

Path("mine.csv").write_text("Question,Answer\nWhere are you?,In Lima\nAre you open?,Until six\nWho is there?,Nadia\n")
rows = load_rows("mine.csv")
print(rows)
parts, told = rows.split(seed=0)
print(told)
print(to_chat(parts["train"][0]))
