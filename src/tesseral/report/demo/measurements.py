"""The parts of the report that measure: accuracy and size."""

from collections.abc import Mapping

from tesseral.report import charts, page
from tesseral.report.demo.plan import NAMES
from tesseral.report.demo.record import DemoRecord, accuracy_table, size_table
from tesseral.report.units import bytes_text


def accuracy_section(record: DemoRecord) -> str:
    """Return how well each model predicts."""
    plan, several = record.plan, len(record.plan.seeds) > 1
    bars = []
    for method, name in NAMES.items():
        value = record.mean(method, lambda m: m.agreement.perplexity)
        points = [m.agreement.perplexity for m in record.of(method)] if several else ()
        bars.append(
            charts.Bar(label=name, text=f"{value:.1f}", value=value, role=method, points=points)
        )
    seeds = ", ".join(map(str, plan.seeds))
    said = f"Means over seeds {seeds}, each a dot." if several else f"Seed {seeds}."
    caption = (
        f"{record.models[0].agreement.n_tokens} tokens of the test text in sequences of "
        f"{plan.sequence_length}. {said} Rounding to nearest draws nothing at random and was "
        "run once."
    )
    return page.section(
        "How well it still predicts",
        [
            page.figure(
                charts.bars("Perplexity, lower is better", bars, xlabel="perplexity"), caption
            ),
            page.table(
                "Perplexity: among how many equally likely tokens, parts of words, a model is "
                "undecided on average. Ratio: over that of full precision. Top-1 agreement: "
                "how often the model's likeliest token is that of full precision. KL "
                "divergence: of the model's predictions from those of full precision, mean in "
                "nats; 0 if equal.",
                *accuracy_table(record),
            ),
            page.paragraph(
                "Every quantised model was measured as it runs: with stored codes, and with "
                "keys and values read back from the packed cache. Full precision computes in "
                "float32.",
                "note",
            ),
        ],
    )


def size_section(record: DemoRecord) -> str:
    """Return how much room each model takes."""
    sizes = {method: record.of(method)[0].footprint for method in NAMES}
    disk = _size_chart("Weights on disk", {m: s.disk_bytes for m, s in sizes.items()})
    memory = _size_chart("In memory", {m: s.memory_bytes for m, s in sizes.items()})
    return page.section(
        "How much room it takes",
        [
            page.grid(
                [
                    page.figure(disk, "The safetensors files, embeddings included."),
                    page.figure(memory, "Parameters and buffers as loaded on the CPU."),
                ]
            ),
            page.table(
                "Decoder blocks: their part of the memory, and all that is quantised. Embeddings "
                "and output layer stay as they are, and weigh the more the smaller a model is; on "
                "the CPU they are in float32, whatever their type on disk. Cache: keys and values "
                "of all layers for one token.",
                *size_table(record),
            ),
        ],
    )


def _size_chart(title: str, sizes: Mapping[str, int]) -> str:
    bars = [
        charts.Bar(label=NAMES[method], text=bytes_text(size), value=size / 1e6, role=method)
        for method, size in sizes.items()
    ]
    return charts.bars(title, bars, xlabel="MB")
