"""Show what the course understands of your rows: format, columns, counts, three rows, what is left out and why.

    python -m helpers data look mine.csv
    python -m helpers data look mine.csv --columns "prompt=Question,completion=Answer" --encoding cp1252
    python -m helpers data look owner/name --split test --revision main
    python -m helpers data look mine.csv --tokens bundled      lengths, template, and what the loss sees

What is shown stays on this screen: nothing is written or sent. Lessons take the same words as dataset_id, columns and so on.
"""

import itertools
import os

from helpers import CourseError, data, evaluation, models

AT_MOST = 50_000  # rows: a second or two
COUNTED = 10_000  # rows whose tokens are counted


def add_arguments(parser):
    parser.add_argument("action", choices=("look",))
    parser.add_argument("file", help="a file, a folder, or owner/name on the hub")
    parser.add_argument("--columns", default="auto", help='such as "prompt=Question,completion=Answer,group=Customer"')
    parser.add_argument("--encoding", default="auto", help="of a text file that is not UTF-8, such as cp1252")
    parser.add_argument("--split", default="auto", help="of a data set on the hub (default: train)")
    parser.add_argument("--revision", default="auto", help="of a data set on the hub")
    parser.add_argument("--rows", type=int, default=AT_MOST, help=f"look at so many, 0: all (default: {AT_MOST:,})")
    parser.add_argument("--tokens", metavar="MODEL", help="count this model's tokens: a preset, a folder or a hub id")
    parser.add_argument(
        "--template", default="auto", help="with --tokens: what lesson 03's parameter of that name says"
    )
    parser.add_argument("--max-length", type=int, help="of a run (default: the recipe's for the model)")


def main(arguments) -> None:
    if arguments.rows < 0 or (arguments.max_length or 1) < 1:
        raise CourseError("--rows and --max-length are whole numbers from 0 and from 1")
    model = models.resolve_model(arguments.tokens, None) if arguments.tokens not in (None, "auto") else None
    if arguments.tokens == "auto":
        raise CourseError('"auto" is a word of the lessons: name a model, such as bundled')
    reading = data.Reading(
        arguments.file, arguments.columns, arguments.encoding, arguments.split, arguments.revision, arguments.rows
    )
    rows = iter(reading)
    kept = list(itertools.islice(rows, COUNTED if model else 0))
    for _ in rows:
        pass
    print(reading.understood)
    if reading.understood.stopped_at:
        print("--rows 0 looks at all of them")
    if model:
        print(
            "\n".join(
                of_tokens(
                    kept, model, arguments.max_length or models.recipe_for(model)["max_length"], arguments.template
                )
            )
        )


def of_tokens(rows: list[dict], model, max_length: int, template: str = "auto") -> list[str]:
    """Lines on the lengths of rows in the model's tokens, the template, and the first row as the loss sees it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.path)
    brought = tokenizer.chat_template
    data.with_template(tokenizer, template)
    pairs = [data.to_chat(row) for row in rows]
    texts = [evaluation.rendered(tokenizer, p["prompt"] + p["completion"], False) for p in pairs]
    asks = [evaluation.rendered(tokenizer, p["prompt"], True) for p in pairs]
    asked, whole = ([len(ids) for ids in tokenizer(t, add_special_tokens=False)["input_ids"]] for t in (asks, texts))
    ordered = sorted(whole)
    cut = sum(length > max_length for length in whole)
    lost = sum(length >= max_length for length in asked)
    named = {"auto": "Alpaca's, which base models get"}.get(template, template)
    named = "the model's own" if tokenizer.chat_template == brought else named
    shared = len(os.path.commonprefix([asks[0], texts[0]]))
    return [
        f"tokens of {model.name}, in the first {len(rows):,} rows: {ordered[len(ordered) // 2]:,} in the median row, "
        f"{ordered[int(0.95 * (len(ordered) - 1))]:,} at the 95th percentile, {ordered[-1]:,} in the longest",
        f"rows cut at max_length {max_length:,}: {cut:,}, which lose their end; {lost:,} of them lose the whole answer",
        f"template: {named}",
        f"only read:  {texts[0][:shared]!r}",
        f"learned:    {texts[0][shared:]!r}, {whole[0] - asked[0]:,} tokens",
    ]
