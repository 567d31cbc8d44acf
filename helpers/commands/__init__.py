"""What `python -m helpers` runs, one file a command. Lessons import nothing from here."""
