"""Short sequences share the rows of a batch, so that little of it is padding."""


def share_rows(sequences):
    """-> lists of sequences, none longer together than the longest alone: longest first, the short ones
    fill the gaps"""
    rows, room = [], max(len(s.tokens) for s in sequences)
    length = lambda row: sum(len(s.tokens) for s in row)
    for s in sorted(sequences, key=lambda s: -len(s.tokens)):
        row = next((row for row in rows if length(row) + len(s.tokens) <= room), None)
        if row is None:
            rows.append(row := [])
        row.append(s)
    return rows
