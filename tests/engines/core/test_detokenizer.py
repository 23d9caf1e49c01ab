"""Tokens become text without half characters and without losing any."""

from hypothesis import given, settings
from hypothesis import strategies as st
from qlora_chat.engines.core.detokenizer import Detokenizer

from qlora_chat.models import LoadedModel


def test_a_character_of_several_bytes_appears_whole(demo_fp32: LoadedModel) -> None:
    detokenizer = Detokenizer(demo_fp32.tokenizer)
    ids = demo_fp32.tokenizer.encode_continuation("日🎉é")
    pieces = [detokenizer.push(each) for each in ids]
    assert "".join(pieces) == "日🎉é"
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(ids) > 3, "these characters take several byte tokens each"


def test_a_character_cut_off_at_the_end_is_marked(demo_fp32: LoadedModel) -> None:
    detokenizer = Detokenizer(demo_fp32.tokenizer)
    first_byte = demo_fp32.tokenizer.encode_continuation("日")[0]
    assert detokenizer.push(first_byte) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


@settings(deadline=None)
@given(text=st.text(max_size=60))
def test_pieces_add_up_to_the_text(demo_fp32: LoadedModel, text: str) -> None:
    detokenizer = Detokenizer(demo_fp32.tokenizer)
    pieces = [detokenizer.push(each) for each in demo_fp32.tokenizer.encode_continuation(text)]
    assert "".join(pieces) + detokenizer.flush() == text
