from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from trainer.config.settings import FilterSettings
from trainer.rollout.prompts import Memory, advance, draw_prompts, in_play, read, resting, write

settings = st.builds(
    FilterSettings,
    enabled=st.just(True),
    solved_at=st.just(0.9),
    visits=st.integers(1, 3),
    rest_epochs=st.integers(1, 6),
    min_active=st.floats(0, 1),
)


def simulate(
    chosen: FilterSettings,
    skills: Sequence[float],
    weights: Sequence[float],
    draws: int,
    epochs: int,
) -> list[tuple[tuple[int, ...], frozenset[int], Memory]]:
    """Epochs in which every group of a prompt has the same mean."""
    memory: Memory = {}
    history = []
    for epoch in range(epochs):
        asleep = resting(memory, chosen, weights, epoch=epoch, at_least=draws)
        prompts = draw_prompts(in_play(weights, asleep), draws, seed=1, epoch=epoch)
        history.append((prompts, asleep, memory))
        memory = advance(
            memory, chosen, epoch=epoch, prompts=prompts, means=[skills[p] for p in prompts]
        )
    return history


@given(
    chosen=settings,
    pool=st.lists(
        st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 1.0, 3.0])),
        min_size=1,
        max_size=8,
    ),
    draws=st.integers(1, 5),
)
def test_the_pool_never_runs_empty_and_only_solved_prompts_rest(chosen, pool, draws) -> None:
    skills, weights = [skill for skill, _ in pool], [weight for _, weight in pool]
    weights[0] = 1.0
    eligible = sum(weight > 0 for weight in weights)
    for prompts, asleep, memory in simulate(chosen, skills, weights, draws, 30):
        assert not asleep & set(prompts)
        assert all(skills[prompt] >= chosen.solved_at for prompt in asleep)
        awake = eligible - len(asleep)
        assert awake >= min(eligible, draws)
        assert awake >= chosen.min_active * eligible
        # What a checkpoint holds is all that is remembered.
        assert read(write(memory)) == memory
        assert write(read(write(memory))) == write(memory)


def test_a_solved_prompt_rests_is_tried_again_and_comes_back_when_it_is_forgotten() -> None:
    chosen = FilterSettings(enabled=True, visits=2, rest_epochs=3, min_active=0)
    memory: Memory = {}

    def visit(epoch: int, mean: float | None) -> None:
        nonlocal memory
        memory = advance(memory, chosen, epoch=epoch, prompts=[1], means=[mean])

    def rests(epoch: int) -> bool:
        return 1 in resting(memory, chosen, [1.0, 1.0], epoch=epoch, at_least=1)

    visit(0, 0.95)
    assert not rests(1)
    visit(1, None)  # no image had a score: neither solved nor unsolved
    assert not rests(2)
    visit(2, 1.0)
    assert [rests(epoch) for epoch in range(3, 8)] == [True, True, True, False, False]
    visit(6, 1.0)  # still solved: it rests again at once
    assert [rests(epoch) for epoch in (7, 9, 10)] == [True, True, False]
    visit(10, 0.5)
    assert memory == {}
    visit(11, 1.0)
    assert not rests(12)


def test_those_whose_rest_ends_first_are_woken_first() -> None:
    chosen = FilterSettings(enabled=True, visits=1, rest_epochs=9, min_active=0.5)
    memory = {0: (1, 30), 1: (1, 20), 2: (1, 25), 3: (1, 20)}
    weights = [1.0] * 4
    assert resting(memory, chosen, weights, epoch=5, at_least=1) == {0, 2}
    assert resting(memory, chosen, weights, epoch=5, at_least=3) == {0}
    assert resting(memory, chosen, weights, epoch=5, at_least=9) == frozenset()
    assert resting(memory, chosen, weights, epoch=22, at_least=1) == {0, 2}
    assert in_play([0.2, 0.3, 0.5], frozenset({1})) == [0.2, 0.0, 0.5]


@given(chosen=settings, epoch=st.integers(0, 9), data=st.data())
def test_the_memory_is_a_function_of_the_history(chosen, epoch, data) -> None:
    prompts = data.draw(st.lists(st.integers(0, 4), max_size=6))
    means = [data.draw(st.sampled_from([None, 0.5, 0.95])) for _ in prompts]
    before: Memory = {0: (1, 0), 3: (2, 7)}
    first = advance(before, chosen, epoch=epoch, prompts=prompts, means=means)
    assert first == advance(before, chosen, epoch=epoch, prompts=prompts, means=means)
    assert before == {0: (1, 0), 3: (2, 7)}
    untouched = set(range(5)) - set(prompts)
    assert {p: v for p, v in first.items() if p in untouched} == {
        p: v for p, v in before.items() if p in untouched
    }
