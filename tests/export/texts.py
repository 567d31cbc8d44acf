"""Texts to cut into tokens: more than two hundred, of every kind that a wrong pre-tokenizer cuts otherwise."""

from pathlib import Path

WORDS = Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split()
SPACED = [
    "", " ", "  ", "   ", "\n", "\n\n", "\n\n\n", " \n", "\n ", "\t", "\t\t", "\r\n", "\r\n\r\n", " \t \n ",
    "\u00a0", "\u3000", "\u2003x", "a\u00a0b", "a b", "a  b", "a   b", "a    b", " a", "  a", "   a", "a ", "a  ",
    "a\n", "a\n\n", "\na", "\n\na", "a\nb", "a\n\nb", "a \n b", "a\r\nb", "a\tb", "\ta", "a\t", "a \n",
    "a  \n\n  b", "x\n\n\n\ny", "1 2 3", "1  2", " 1", "\n1", "1\n", " !", "!\n", "!\n\nb", "! \n", " (a)",
    "\u200b", "a\u200bb", "\ufeffa", "a\x00b", "\x7f", "\x1b[0m",
]  # fmt: skip
LINES = [
    "The capital of Italy is Rome.",
    "  Leading spaces, and trailing ones.  ",
    "What comes before November in the calendar?",
    "for i in range(10):\n    print(i, end=' ')\n",
    'def f(x: int) -> str:\n\treturn f"{x!r:>10}"  # a comment\n',
    "if (a && !b || c[0] != '\\n') { return *p++; }",
    "SELECT name, COUNT(*) FROM t WHERE x >= 3.5 GROUP BY 1;",
    '<html><body class="x">a &amp; b</body></html>',
    '{"key": [1, 2.5, null, true], "s": "é\\u00e9"}',
    "https://example.org/a/b?c=d&e=f#g",
    "- one\n- two\n  - three\n\n1. first\n2. second\n",
    "| a | b |\n|---|---|\n| 1 | 2 |\n",
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\nhi\n\n### Response:\n",
    "Voilà l'été: où êtes-vous, Zoë? Ça va.",
    "Übergrößenträger äußern öfter Ärger.",
    "Zażółć gęślą jaźń. Příliš žluťoučký kůň.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю 123.",
    "今天天气很好，我们去公园吧。2026年11月26日",
    "吾輩は猫である。名前はまだ無い。",
    "오늘은 날씨가 좋네요! 3시에 만나요.",
    "مرحبا بالعالم، كيف حالك؟ ١٢٣",
    "שלום עולם! מה שלומך?",
    "नमस्ते दुनिया, आप कैसे हैं?",
    "สวัสดีชาวโลก",
    "Hi 👋🏿, it's 5 o'clock 🕔 somewhere… isn't it?!",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "=" * 70,
    "." * 33 + "\n",
    " " * 17 + "x",
    "\n" * 9 + "x",
    "tab\tseparated\tvalues\n1\t2\t3\n",
    "He said: \"It's 'fine'.\"",
    "𝕳𝖊𝖑𝖑𝖔 𝟙𝟚𝟛 ＡＢＣ１２３",
    "H₂O, E=mc², x₁…xₙ, 10⁻³",
]
TEXTS = list(dict.fromkeys(WORDS + SPACED + LINES))
DECOMPOSED = [
    "e\u0301",
    "cafe\u0301 noir",
    "u\u0308ber",
    "n\u0303",
    "A\u030angstro\u0308m",
]  # a letter, then its accent


def with_special(names: list[str]) -> list[str]:
    """Texts that special tokens stand in."""
    found = []
    for name in names:
        found += [
            name,
            f"a{name}b",
            f"a {name} b",
            f"{name}\n{name}",
            f"{name} hello",
            f"hello{name}",
            f"x\n{name}\n\ny",
        ]
    return [*found, "".join(names), " ".join(names), "<nothing special>", "<|im_nothing|>"]
