import numpy as np
import pytest

from support.frameworks import every_framework, to_numpy
from tesseral._errors import ParameterError
from tesseral.core import as_generator, spawn, standard_normal


def test_an_integer_gives_the_same_stream_each_time():
    np.testing.assert_array_equal(as_generator(3).random(4), as_generator(3).random(4))
    assert (as_generator(3).random(4) != as_generator(4).random(4)).any()


def test_none_gives_fresh_entropy():
    assert (as_generator(None).random(4) != as_generator(None).random(4)).any()


def test_a_generator_is_used_itself():
    generator = np.random.default_rng(0)
    assert as_generator(generator) is generator


def test_a_random_state_lends_a_seed_and_moves_on():
    first, second = np.random.RandomState(0), np.random.RandomState(0)
    np.testing.assert_array_equal(as_generator(first).random(4), as_generator(second).random(4))
    assert as_generator(first).random() != as_generator(np.random.RandomState(0)).random()


def test_the_global_state_is_neither_read_nor_moved():
    before = str(np.random.get_state())  # noqa: NPY002
    spawn(None, 2)
    standard_normal(None, 3)
    assert str(np.random.get_state()) == before  # noqa: NPY002


def test_restarts_may_run_in_any_order():
    forward = [generator.random() for generator in spawn(0, 3)]
    backward = [generator.random() for generator in reversed(spawn(0, 3))]
    assert forward == backward[::-1]


def test_a_restart_has_its_own_stream_however_many_follow():
    few, many = spawn(0, 2), spawn(0, 5)
    np.testing.assert_array_equal(few[1].random(4), many[1].random(4))
    draws = {generator.random() for generator in many}
    assert len(draws) == 5


@every_framework
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_framework_gets_the_same_numbers(make, dtype):
    reference = make(np.empty(0, dtype=dtype))
    got = standard_normal(0, (2, 3), reference)
    assert type(got) is type(reference)
    assert to_numpy(got).dtype == dtype
    np.testing.assert_array_equal(to_numpy(got), standard_normal(0, (2, 3)).astype(dtype))


@pytest.mark.parametrize("seed", [-1, 1.5, "zero", True])
@pytest.mark.parametrize("function", [as_generator, lambda seed: spawn(seed, 2)])
def test_what_is_no_seed_is_refused(function, seed):
    with pytest.raises(ParameterError, match=f"random_state must be a seed .*; got {seed!r}"):
        function(seed)
