from pathlib import Path

from helpers.data import load_rows, split_rows, to_prompt_completion

lines = [f"What is {n} times {n}?,{n * n}" for n in range(1, 21)]
Path("questions.csv").write_text("question,answer\n" + "\n".join(lines), encoding="utf-8")
loaded = load_rows("questions.csv")
learn, held, _ = split_rows(loaded.rows)
print(len(learn), "rows to learn,", len(held), "held out")
print(to_prompt_completion(loaded.rows[2])["completion"])

# It prints:
#   18 rows to learn, 2 held out
#   9
