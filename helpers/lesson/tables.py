"""Tables, as lessons show them."""


def table(rows: list[dict]):
    """A table for display from dictionaries of ready-made text or numbers; shown as HTML by Jupyter, text elsewhere."""
    import pandas as pd

    pd.set_option("display.max_colwidth", None)
    frame = pd.DataFrame(rows)
    return frame.set_index(frame.columns[0])
