"""The cells of lessons that tests look for: by a tag of the cell's own, or by the exercise that it solves; never by its words."""

import re

import nbformat

from helpers.course import disk as course


def tagged(notebook, tag: str):
    """The one cell of a notebook that carries a tag."""
    found = [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]
    assert len(found) == 1, f"{len(found)} cells carry the tag {tag!r}"
    return found[0]


class Finished(dict):
    """A lesson's names after all its cells but the set-up were run here, into `folder`, with some of its parameters changed."""

    def __init__(self, notebook, folder, **parameters):
        super().__init__(__name__="__main__")
        self.notebook = notebook
        for cell in notebook.cells:
            tags = cell.metadata.get("tags", [])
            if cell.cell_type == "code" and "bootstrap" not in tags:
                exec(compile(cell.source, "cell", "exec"), self)
            if "parameters" in tags:
                self.update(parameters, output_dir=str(folder))

    def run(self, source: str, **changed) -> dict:
        """Source run on a copy of the names, some of them changed; the copy."""
        names = {**self, **changed}
        exec(compile(source, "cell", "exec"), names)
        return names

    def again(self, tag: str, **changed) -> dict:
        """The cell with a tag, run so."""
        return self.run(tagged(self.notebook, tag).source, **changed)


def lesson_cell(lesson: str, tag: str):
    """The cell of a lesson's source ("04") that carries a tag, without outputs."""
    return tagged(course.to_notebook(course.find_lesson(lesson)), tag)


def stored(lesson: str):
    """A lesson's notebook as it lies in notebooks/, with its outputs."""
    return nbformat.read(course.NOTEBOOKS / f"{course.find_lesson(lesson).stem}.ipynb", as_version=4)


def solutions() -> dict[str, str]:
    """The code of each folded solution, by exercise."""
    found = {}
    for lesson in course.lessons():
        for cell in course.to_notebook(lesson).cells:
            for block in re.findall(r"<details>.*?```python\n(.*?)```", cell.source, re.DOTALL):
                name = re.search(r'check\("(\d\d\.\d+)"', block)
                assert name, f"{lesson.stem}: a solution that checks nothing:\n{block}"
                found[name[1]] = block
    return found
