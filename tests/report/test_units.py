import pytest

from tesseral.quantization import QuantizationConfig
from tesseral.report.units import bits_text, bytes_text, machine_rows, seconds_text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (864.0, "864 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (6144, "6.1 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (10_957_216, "11.0 MB"),
        (999_949_999, "999.9 MB"),
        (999_950_000, "1.0 GB"),
        (3e12, "3000.0 GB"),
    ],
)
def test_bytes(count, text):
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (99.4, "99 s"),
        (99.6, "1 min 40 s"),
        (119.6, "2 min 0 s"),
        (3725, "62 min 5 s"),
    ],
)
def test_seconds(seconds, text):
    assert seconds_text(seconds) == text


def test_bits():
    assert bits_text(QuantizationConfig()) == "W4A4KV4"
    assert bits_text(QuantizationConfig(weight_bits=8, key_bits=3, value_bits=3)) == "W8A4KV3"
    assert bits_text(QuantizationConfig(kv_bits=8, value_bits=2)) == "W4A4K8V2"


def test_a_machine_is_told_in_words():
    caches = {"l1d": 49152, "l2": 0, "l3": 0, "source": "sysfs", "l1d_cores": 1}
    machine = {"cpu": "x", "caches": caches, "memory_bytes": 25276059648, "accelerators": []}
    rows = dict(machine_rows(machine | {"compiler": None, "layers": {}}))
    assert rows["caches"] == "l1d 48 KiB / 1 cores (from sysfs)"
    assert rows["memory_bytes"] == "25.3 GB"
    assert (rows["accelerators"], rows["compiler"], rows["layers"]) == ("none", "not set", "none")
    assert dict(machine_rows({"memory_bytes": None})) == {"memory_bytes": "not set"}
