"""The demo's report as one page."""

from tesseral.report import page
from tesseral.report.demo.flatness import flatness_section
from tesseral.report.demo.legislature import legislature_section
from tesseral.report.demo.measurements import accuracy_section, size_section
from tesseral.report.demo.nations import nations_section
from tesseral.report.demo.plan import NAMES, TRANSFORMED
from tesseral.report.demo.record import DemoRecord
from tesseral.report.demo.speed import attention_section, layers_section
from tesseral.report.units import bits_text, bytes_text, machine_rows, seconds_text, value_text


def demo_page(record: DemoRecord) -> str:
    """Return the report as a complete HTML document."""
    return page.page(
        "Four systems on tiles of tensors, run on this machine",
        [
            page.paragraph(
                "Everything below was computed here by one command, on data and on a small "
                f"language model that come with the package, in {seconds_text(record.elapsed_s)}: "
                f"{record.machine['cpu']}, {record.machine['cores']} cores.",
                "lead",
            ),
            page.contents(_CONTENTS),
            page.facts(_headlines(record)),
            _quantised(record),
            accuracy_section(record),
            size_section(record),
            flatness_section(record),
            _samples(record),
            layers_section(record.speeds),
            attention_section(record.speeds),
            legislature_section(record.legislature),
            nations_section(record.nations),
            _making(record),
        ],
    )


_CONTENTS = {
    "quantisation": "A language model in 4 bits",
    "attention": "Exact attention",
    "peru": "Clusters of a legislature",
    "nations": "Relations among nations",
    "making": "How this was made",
}


def _headlines(record: DemoRecord) -> list[tuple[str, str]]:
    """Return one number for each system."""
    ratio = record.mean("flatquant", lambda m: m.agreement.ratio)
    plain = record.mean("none", lambda m: m.agreement.ratio)
    ratios = [race.ratio for race in record.speeds.prefill]
    lengths, dtype = record.speeds.lengths, record.speeds.dtype
    rate = record.legislature.fit.error_rate
    return [
        (
            f"{ratio:.3f} x",
            f"the perplexity of full precision: a language model in few bits "
            f"({bits_text(record.plan.config)}) by FlatQuant; by rounding alone {plain:.2f} x",
        ),
        (
            f"{min(ratios):.1f} to {max(ratios):.1f} x",
            f"as fast as torch's attention in {dtype}: causal, {min(lengths)} to {max(lengths)} "
            "tokens",
        ),
        (f"{rate:.4f}", "of the pairs of legislators differ between clusters and parties"),
        (
            f"{record.nations.n_clear} of {len(record.nations.effects)}",
            "attributes of nations have an effect on their relations, as sender or receiver "
            "(adjusted p below 0.01)",
        ),
    ]


def _quantised(record: DemoRecord) -> str:
    config, (original,) = record.plan.config, record.of("full")
    keys, values = config.cache_bits
    before, after = original.footprint, record.of("flatquant")[0].footprint
    perplexity = record.mean("flatquant", lambda m: m.agreement.perplexity)
    return page.section(
        f"A language model in {bits_text(config)}",
        [
            page.paragraph(
                f"Tesseral turned the language model “{record.plan.model.name}” into one with "
                f"{config.weight_bits}-bit weights, {config.activation_bits}-bit activations, and "
                f"a cache of {keys}-bit keys and {values}-bit values. It did so in three ways, and "
                "measured each."
            ),
            page.facts(
                [
                    (
                        f"{perplexity:.1f}",
                        "perplexity with FlatQuant; full precision has "
                        f"{original.agreement.perplexity:.1f}",
                    ),
                    (
                        bytes_text(after.block_bytes),
                        f"decoder blocks in memory, from {bytes_text(before.block_bytes)}",
                    ),
                    (
                        bytes_text(after.cache_bytes_per_token),
                        f"cache for a token, from {bytes_text(before.cache_bytes_per_token)}",
                    ),
                ]
            ),
        ],
        anchor="quantisation",
    )


def _samples(record: DemoRecord) -> str:
    plan = record.plan
    note = (
        f"Each model went on from “{plan.prompt}” for {plan.new_tokens} tokens, drawn at "
        f"temperature {plan.temperature:g} with the same seed. One draw is an illustration, "
        "not a measurement."
    )
    texts = [
        page.quotation(name, plan.prompt + record.of(method)[0].sample)
        for method, name in NAMES.items()
    ]
    return page.section("What it writes", [page.paragraph(note, "note"), page.grid(texts)])


def _making(record: DemoRecord) -> str:
    plan = record.plan
    varied = {"transform": ["none", *TRANSFORMED], "seed": list(plan.seeds)}
    times = ", ".join(
        f"{NAMES[method]} {seconds_text(record.of(method)[0].quantize_s)}"
        for method in ("none", *TRANSFORMED)
    )
    words = (
        f"{seconds_text(record.elapsed_s)} in all; quantising took {times}. The models are in "
        "models/ beside this page and load with tesseral.llm.load."
    )
    tables = [
        page.table(caption, ["what", "value"], rows)
        for caption, rows in (
            ("Settings", [[k, value_text(v)] for k, v in (plan.config.to_dict() | varied).items()]),
            ("Machine", machine_rows(record.machine)),
        )
    ]
    return page.section(
        "How this was made", [page.paragraph(words), page.grid(tables)], anchor="making"
    )
