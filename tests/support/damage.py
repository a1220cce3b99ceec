"""Files that something happened to."""

import hypothesis.strategies as st


def damaged(content, data):
    """The content with some of it cut off, flipped, inserted, repeated, or a small number replaced by any."""
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(["cut", "flip", "insert", "repeat", "number"]))
        at = data.draw(st.integers(0, max(0, len(content) - 1)))
        if kind == "cut":
            del content[at:]
        elif kind == "flip" and content:
            content[at] = data.draw(st.integers(0, 255))
        elif kind == "insert":
            content[at:at] = data.draw(st.binary(max_size=20))
        elif kind == "repeat":
            content[at:at] = content[at:] * data.draw(st.integers(1, 20))
        else:
            content[at : at + 8] = data.draw(st.integers(0, 2**64 - 1)).to_bytes(8, "little")
    return bytes(content)
