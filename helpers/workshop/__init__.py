"""What an instructor teaches with: learners' notebooks, slides, schedules, and the page of a class."""

from helpers.workshop.class_files import Handed, Learner, read_class
from helpers.workshop.class_page import write_class_page
from helpers.workshop.hand_in import save_class_file

__all__ = [
    "read_class",  # read the files of a class, and list those that cannot be believed
    "Handed",  # a folder that was read
    "Learner",  # all that came from one person
    "write_class_page",  # one page of it
    "save_class_file",  # what a learner hands in, from the last cell of her notebook
]
