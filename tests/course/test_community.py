"""The papers of the house: licences that are named once each, how to treat each other, and how to report in private."""

import re
import subprocess

import pytest

from helpers import COURSE_ROOT

PAPERS = ("LICENSE-TEXTS.md", "CODE_OF_CONDUCT.md", "SECURITY.md")


def text_of(name: str) -> str:
    return (COURSE_ROOT / name).read_text(encoding="utf-8")


def naming(pattern: str, texts: dict[str, str]) -> list[str]:
    return [name for name, text in texts.items() for _ in re.findall(pattern, text)]


def tracked_texts() -> dict[str, str]:
    listed = subprocess.run(["git", "ls-files", "*.md"], capture_output=True, text=True, cwd=COURSE_ROOT, check=True)
    return {name: text_of(name) for name in listed.stdout.split()}


def test_the_licence_of_texts_is_named_in_its_file_and_at_most_once_in_the_readme():
    named = naming(r"\bCC[ -]BY[ -]4\.0\b", tracked_texts())
    assert named.count("LICENSE-TEXTS.md") == 1
    assert named.count("README.md") <= 1
    assert set(named) <= {"LICENSE-TEXTS.md", "README.md"}


def test_a_licence_that_is_named_twice_is_noticed():
    assert naming(r"\bCC[ -]BY[ -]4\.0\b", {"a.md": "CC BY 4.0, CC-BY-4.0", "b.md": "CC BY-NC 4.0"}) == ["a.md", "a.md"]


def test_the_licence_of_code_is_the_text_in_license_and_pyproject_names_it():
    assert "Apache License\n                           Version 2.0" in text_of("LICENSE")
    assert 'license = "Apache-2.0"' in text_of("pyproject.toml")
    assert "[LICENSE](LICENSE)" in text_of("LICENSE-TEXTS.md")


@pytest.mark.parametrize("name", PAPERS)
def test_links_and_files_that_a_paper_names_are_there(name):
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text_of(name)) + re.findall(
        r"`([\w./-]+[/.]\w*)`", text_of(name)
    ):
        assert (COURSE_ROOT / target).exists() or target.startswith("."), f"{name} names {target}"


def test_both_say_where_to_write_and_within_what_time():
    for name in ("CODE_OF_CONDUCT.md", "SECURITY.md"):
        assert "repository's\nowner" in text_of(name) or "repository's owner" in text_of(name)
        assert "within a week" in text_of(name)


def test_what_security_says_of_code_and_pickles_is_so():
    code = [*COURSE_ROOT.glob("helpers/**/*.py"), *COURSE_ROOT.glob("lessons/*.py")]
    text = "\n".join(file.read_text(encoding="utf-8") for file in code)
    assert not re.search(r"trust_remote_code\s*=\s*True|\bpickle\.loads?\(|\btorch\.load\(", text)
