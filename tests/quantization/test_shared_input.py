"""What several layers read is prepared once, and nothing stays behind."""

import gc
import weakref

import pytest
import torch

from tesseral.quantization.shared_input import SharedInput


class Counting(SharedInput):
    """Doubles its input and counts how often."""

    def __init__(self, readers):
        super().__init__()
        self.computed = 0
        for _ in range(readers):
            self.add_reader()

    def compute(self, x):
        self.computed += 1
        return x * 2


@pytest.mark.parametrize("readers", [1, 2, 3])
def test_the_input_is_prepared_once_for_all_readers(readers):
    shared = Counting(readers)
    for turn in range(1, 4):
        x = torch.ones(2) * turn
        results = [shared(x) for _ in range(readers)]
        assert shared.computed == turn
        assert all(result is results[0] for result in results)
        assert torch.equal(results[0], x * 2)


def test_equal_values_in_another_tensor_are_prepared_anew():
    shared = Counting(2)
    first, second = shared(torch.ones(2)), shared(torch.ones(2))
    assert shared.computed == 2
    assert first is not second


def test_an_input_that_was_written_to_is_prepared_anew():
    shared, x = Counting(3), torch.ones(2)
    shared(x)
    x += 1
    assert torch.equal(shared(x), torch.full((2,), 4.0))
    assert shared.computed == 2


def test_inputs_of_inference_mode_have_no_version_and_work():
    shared = Counting(2)
    with torch.inference_mode():
        x = torch.ones(2)
        assert shared(x) is shared(x)


@pytest.mark.parametrize("readers", [1, 3])
def test_nothing_is_held_after_the_last_reader(readers):
    shared, x = Counting(readers), torch.ones(2)
    result = [shared(x) for _ in range(readers)].pop()
    held = weakref.ref(x), weakref.ref(result)
    del x, result
    gc.collect()
    assert [ref() for ref in held] == [None, None]


def test_a_pass_that_was_cut_short_does_not_disturb_the_next():
    shared, x = Counting(3), torch.ones(2)
    shared(x)  # an exception, say, before the other two readers
    y = torch.zeros(2)
    assert [shared(y) for _ in range(3)][-1].tolist() == [0, 0]
    assert shared.computed == 2
