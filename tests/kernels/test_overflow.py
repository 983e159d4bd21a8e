"""Second places: arrays by hand, and any list against a loop over its assignments."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtura.kernels import overflow
from mixtura.kernels.overflow import place


def loop(waiting, token, *, score, held, free, served):
    """Serve one after another."""
    E, free, held = len(free), list(free), [set(row) for row in held]
    expert = [E] * len(token)
    for n in served:
        usable = [e for e in range(E) if free[e] and e not in held[token[n]]]
        if waiting[n] and usable:
            expert[n] = max(usable, key=lambda e: (score[token[n]][e], -e))
            free[expert[n]] -= 1
            held[token[n]].add(expert[n])
    return expert


def run(waiting, token, *, score, held, free, served=None):
    E = len(free)
    held_TE = torch.tensor([[e in row for e in range(E)] for row in held], dtype=torch.bool).view(len(held), E)
    return place(
        torch.tensor(waiting, dtype=torch.bool),
        torch.tensor(token, dtype=torch.int64),
        score_TE=torch.tensor(score).view(len(held), E),
        held_TE=held_TE,
        free_E=torch.tensor(free),
        served_N=None if served is None else torch.tensor(served, dtype=torch.int64),
    ).tolist()


def test_the_first_served_gets_the_last_place():
    score = [[0.1, 0.7, 0.2], [0.1, 0.6, 0.3]]
    assert run([True, True], [0, 1], score=score, held=[[], []], free=[1, 1, 1]) == [1, 2]
    assert run([True, True], [0, 1], score=score, held=[[], []], free=[1, 1, 1], served=[1, 0]) == [2, 1]


def test_a_later_one_does_not_take_an_earlier_ones_second_wish():
    # Token 1 finds expert 0 taken and gets expert 1, its second wish, before token 2 is asked, whose first wish it is.
    score = [[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.0, 0.9, 0.1]]
    assert run([True] * 3, [0, 1, 2], score=score, held=[[]] * 3, free=[1, 1, 1]) == [0, 1, 2]


def test_no_expert_twice_for_a_token_and_none_that_it_holds():
    assert run([True, True, True], [0, 0, 0], score=[[0.5, 0.3, 0.2]], held=[[0]], free=[9, 9, 9]) == [1, 2, 3]


def test_what_does_not_wait_gets_nothing():
    assert run([False, True], [0, 0], score=[[0.9, 0.1]], held=[[]], free=[1, 0]) == [2, 0]


@pytest.mark.parametrize(("token", "tokens"), [([], 0), ([], 3)])
def test_nothing_to_place(token, tokens):
    assert run([], token, score=[[0.0, 1.0]] * tokens, held=[[]] * tokens, free=[1, 1]) == []


def test_no_room_at_all_and_scores_of_nan():
    assert run([True], [0], score=[[0.5, 0.5]], held=[[]], free=[0, 0]) == [2]
    assert run([True, True], [0, 1], score=[[torch.nan] * 2] * 2, held=[[]] * 2, free=[1, 1]) == [0, 1]


@st.composite
def lists(draw):
    E, T = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    token = draw(st.lists(st.integers(0, T - 1), max_size=12))
    return {
        "waiting": [draw(st.booleans()) for _ in token],
        "token": token,
        "score": [[draw(st.integers(0, 4)) / 4 for _ in range(E)] for _ in range(T)],
        "held": [draw(st.lists(st.integers(0, E - 1), max_size=E)) for _ in range(T)],
        "free": [draw(st.integers(0, 4)) for _ in range(E)],
        "served": draw(st.permutations(range(len(token)))),
    }


@pytest.mark.parametrize("looks", [True, False])
@given(case=lists())
@settings(max_examples=150)
def test_any_list_is_placed_as_a_loop_does(looks, case):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overflow, "may_look", lambda x: looks)
        case = dict(case)
        expected = loop(case["waiting"], case["token"], **{k: case[k] for k in ("score", "held", "free", "served")})
        assert run(case.pop("waiting"), case.pop("token"), **case) == expected


def test_unwritten_memory_is_not_read(poison):
    score = [[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.0, 0.9, 0.1]]
    assert run([True] * 3, [0, 1, 2], score=score, held=[[]] * 3, free=[1, 1, 1], served=[2, 1, 0]) == [2, 0, 1]
