import json
import subprocess
import sys

import pytest

from support.checkpoints import TEXT, change_config
from support.ranks import command_on_ranks
from tesseral.cli import generate as command
from tesseral.llm import generate, load, quantize
from tesseral.quantization import QuantizationConfig

PROMPT = ("--prompt", "It was the best")


MORE = ["--max-new-tokens", "9"]


def test_the_continuation_goes_to_stdout_and_the_speed_to_stderr(run, original):
    result = run("generate", original, *PROMPT, "--max-new-tokens", 9)
    model, tokenizer = load(original)
    expected = generate(model, tokenizer, PROMPT[1], max_new_tokens=9)
    assert (result.exit_code, result.stdout) == (0, expected + "\n")
    assert result.stderr.startswith("9 tokens in ")
    assert result.stderr.endswith(" tokens/s, reading the prompt included\n")


def test_seed_and_temperature_are_passed_on(run, original):
    options = ("--max-new-tokens", 20, "--temperature", 1.5, "--seed")
    texts = [run("generate", original, *PROMPT, *options, seed).stdout for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_json_holds_text_and_speed_and_nothing_else_is_written(run, original):
    result = run("generate", original, *PROMPT, "--max-new-tokens", 9, "--json")
    record = json.loads(result.stdout)
    assert result.stderr == ""
    assert (record["model"], record["prompt"]) == (str(original), PROMPT[1])
    assert record["n_tokens"] == 9
    assert record["tokens_per_s"] == pytest.approx(9 / record["elapsed_s"])
    assert len(record["text"]) == 9


def test_within_a_budget_the_text_is_the_same(run, original, tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text(PROMPT[1], "utf-8")
    expected = run("generate", original, *PROMPT, "--max-new-tokens", 9).stdout
    budget = ("--gpu-memory", "0.5GB", "--host-memory", "1GiB", "--context", 60)
    assert run("generate", original, *PROMPT, *budget, "--max-new-tokens", 9).stdout == expected
    given = ("--prompt-file", prompt, "--max-new-tokens", 9)
    assert run("generate", original, *given).stdout == expected


def test_more_memory_than_may_be_taken_is_told(run, original, monkeypatch):
    budget = ("--gpu-memory", "1GB", "--max-new-tokens", 2)
    for taken, told in ((10**9, False), (10**9 + 10**8, True)):
        monkeypatch.setattr(command, "_taken", lambda _, taken=taken: taken)
        result = run("generate", original, *PROMPT, *budget, "--json")
        assert json.loads(result.stdout)["device_bytes"] == taken
        assert ("1.10 GB of the device's memory were taken, more" in result.stderr) is told


def test_words_are_written_as_they_come(run, monkeypatch):
    written = []
    monkeypatch.setattr(command, "_write", written.append)
    run("generate", "embedded", "--prompt", "The old man opened the door", "--max-new-tokens", 12)
    assert len(written) > 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--temperature", -1], "temperature must be at least 0"),
        (["--temperature", "nan"], "temperature must be at least 0"),
        (["--max-new-tokens", 0], "max_new_tokens at least 1"),
        (["--max-new-tokens", 1000], "1000 new ones do not fit"),
        (["--prompt", ""], "a prompt of 0 tokens"),
        (["--prompt", "a" * 200], "a prompt of 200 tokens"),
        (["--prompt", "caf\udce9"], "--prompt is not UTF-8 text"),
        (["--prompt-file", "x"], "give --prompt or --prompt-file, one of them"),
        (["--gpu-memory", "much"], "--gpu-memory: 'much' is no amount of memory"),
        (["--gpu-memory", "1MB"], "0.00 GB of device memory do not hold the model"),
        (["--gpu-memory", "1GB", "--context", 30], "do not fit a plan for 30"),
        (["--context", 30], "--context is for --gpu-memory"),
        (["--divide", "context"], "--divide is for ranks; start them by torchrun"),
        (["--divide", "tokens"], "--divide must be model or context, got 'tokens'"),
    ],
)
def test_what_cannot_be_generated_is_refused(options, said, refused, original):
    assert said in refused("generate", original, *PROMPT, *options)


def test_an_instruction_set_that_cannot_run_is_refused(refused, original, monkeypatch):
    monkeypatch.setenv("TESSERAL_CPU_TARGET", "sse9")
    said = refused("generate", original, *PROMPT, "--max-new-tokens", 2)
    assert "TESSERAL_CPU_TARGET='sse9' is unknown" in said


@pytest.mark.parametrize("bits", [2, 8, 16])
def test_bits_that_are_not_those_of_the_weights_are_refused(refused, original, tmp_path, bits):
    config = QuantizationConfig(transform="none", samples=1, sequence_length=16)
    out = quantize(original, config, TEXT, tmp_path / "w4")
    described = json.loads((out / "config.json").read_text())["quantization_config"]
    change_config(out, quantization_config=described | {"weight_bits": bits})
    assert "the weights do not fit config.json" in refused("generate", out, *PROMPT)


def test_a_missing_model_is_refused(refused, tmp_path):
    assert "there is no such model directory" in refused("generate", tmp_path / "no", *PROMPT)


def test_ranks_of_torchrun_write_what_one_process_writes(run, original):
    expected = run("generate", original, *PROMPT, *MORE).stdout
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    ours = ("--no-python", sys.executable, "-c", "from tesseral.cli.main import main; main()")
    found = subprocess.run(
        [sys.executable, *torchrun, *ours, "generate", original, *PROMPT, *MORE],
        capture_output=True,
        check=False,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout == expected


def test_ranks_that_divide_the_context_write_what_one_process_writes(run, original):
    expected = run("generate", original, *PROMPT, *MORE).stdout
    words = ("generate", original, *PROMPT, *MORE, "--divide", "context")
    codes, outputs, errors = command_on_ranks(words, 2)
    assert codes == [0, 0], errors
    assert outputs == [expected, ""]
