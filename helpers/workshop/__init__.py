"""What an instructor teaches with: learners' notebooks, slides, schedules, and the page of a class."""

from helpers.workshop.class_files import Handed, Learner, read_class
from helpers.workshop.class_page import write_class_page
from helpers.workshop.hand_in import save_class_file
from helpers.workshop.kit_pages import write_pages
from helpers.workshop.learner_notebooks import WORKSHOP, write_learner_notebooks
from helpers.workshop.slides import write_slides

__all__ = [
    "read_class",  # read the files of a class, and list those that cannot be believed
    "Handed",  # a folder that was read
    "Learner",  # all that came from one person
    "write_class_page",  # one page of it
    "write_learner_notebooks",  # a lesson without outputs and solutions, and with solutions as cells
    "WORKSHOP",  # the folder of what is made for a workshop
    "write_pages",  # set-up, who it is for, questions, schedules, index
    "write_slides",  # a lesson's slides, in one file that needs no network
    "save_class_file",  # what a learner hands in, from the last cell of her notebook
]
