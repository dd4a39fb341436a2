"""A cache of transformers whose layers lie on a device and in the host's memory, as planned."""

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from transformers import Cache, PreTrainedModel

from tesseral._errors import ParameterError
from tesseral.llm.cache import windows_of
from tesseral.llm.cooperative.conveyor import Conveyor
from tesseral.llm.cooperative.forms import codecs_of, nothing_of, sliding_layer
from tesseral.llm.cooperative.host_layer import HostLayer, Shared
from tesseral.llm.cooperative.layers import DeviceLayer, PlacedLayer
from tesseral.llm.cooperative.link import Link
from tesseral.llm.cooperative.plan import MemoryPlan
from tesseral.llm.cooperative.room import Room
from tesseral.llm.cooperative.split import Split
from tesseral.llm.cooperative.timeline import Timeline
from tesseral.llm.division import heads_of
from tesseral.quantization.kvcodec import KVCodec


class CooperativeCache(Cache):  # type: ignore[misc]  # transformers is untyped to mypy
    """A cache for contexts that a device's memory does not hold: device and CPU attend together.

    As many layers as the plan says keep their keys and values on the device, the others in pinned
    memory of the host. Of a prompt they leave the device layer by layer while it computes, and
    come back strip by strip for later chunks. In decoding, queries and new keys and values go to
    the CPU, which attends where the keys lie; meanwhile the link carries as many of them as it
    can to the device, which attends to these. Nothing that grows with the context is copied to
    and fro beyond that.

    All memory is taken at once, so nothing grows or moves. Gradients do not pass.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        With ``attn_implementation="tesseral"``; quantised or not.
    plan : MemoryPlan
        Of :func:`plan_memory` for this model.
    cooperate : bool
        ``False`` leaves the CPU out: all keys and values of the host's layers pass to the device
        with every token.
    passing : int, optional
        Tokens of a host's layer that pass to the device while the CPU attends to the others; by
        default found out in the first steps.
    link : Link, optional
        The way between device and host.
    cpu : Executor, optional
        Runs the CPU's attention, of several caches in turns; by default a thread does beside a
        device, and else the calling one.

    Raises
    ------
    ParameterError
        If the plan cannot be run, or is for another model, or the model has another attention.

    Examples
    --------
    >>> plan = plan_memory(model, 262_144, gpu_bytes=32 * 10**9)  # doctest: +SKIP
    >>> cache = CooperativeCache(model, plan)  # doctest: +SKIP
    >>> model.generate(  # doctest: +SKIP
    ...     **inputs, past_key_values=cache, prefill_chunk_size=plan.chunk
    ... )
    """

    def __init__(
        self,
        model: PreTrainedModel,
        plan: MemoryPlan,
        *,
        cooperate: bool = True,
        passing: int | None = None,
        link: Link | None = None,
        cpu: Executor | None = None,
    ) -> None:
        plan.require()
        text: Any = model.config.get_text_config(decoder=True)
        if plan.n_layers != text.num_hidden_layers:
            raise ParameterError(
                f"CooperativeCache: the plan is for {plan.n_layers} layers and the model has "
                f"{text.num_hidden_layers}; plan for this model."
            )
        codecs = codecs_of(model, (plan.key_bits, plan.value_bits), what="CooperativeCache")
        self.plan, self._link, self._cpu = plan, link or Link(model.device), cpu
        if cpu is None and self._link.has_streams:
            self._cpu = ThreadPoolExecutor(1, "attention")
        self._likes = [nothing_of(model, plan.batch, codec) for codec in codecs]
        layers: list[Any] = []
        self._shared: Shared | None = None
        for index, (codec, window) in enumerate(zip(codecs, windows_of(text), strict=True)):
            if window is not None:
                layers.append(sliding_layer(model, codec, window))
            elif index in plan.host_layers:
                layers.append(self._host_layer(text, codec, index, cooperate, passing))
            else:
                room = Room(self._likes[index], plan.context, self._link.device_array)
                layers.append(DeviceLayer(room, codec, self._link))
        super().__init__(layers=layers)

    @property
    def host_bytes(self) -> int:
        """Bytes of keys and values in the host's memory."""
        return sum(layer.room.nbytes for layer in self.layers if isinstance(layer, HostLayer))

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, wherever they are; of layers without a sliding window."""
        return sum(layer.room.nbytes for layer in self.layers if isinstance(layer, PlacedLayer))

    @property
    def passing(self) -> int:
        """Tokens of a host's layer that pass to the device with the next token."""
        if self._shared is None:
            return 0
        return self._shared.split.tokens(self.get_seq_length())

    @property
    def cooperates(self) -> bool:
        """Whether the CPU attends; may be set between calls."""
        return self._shared is not None and self._shared.cooperate

    @cooperates.setter
    def cooperates(self, wanted: bool) -> None:
        if self._shared is not None:
            self._shared.cooperate = wanted

    @contextmanager
    def recorded(self) -> Iterator[Timeline]:
        """Record what device, links and CPU do inside; see :class:`Timeline`."""
        with self._link.recorded() as timeline:
            yield timeline

    def _host_layer(
        self, text: Any, codec: KVCodec | None, index: int, cooperate: bool, passing: int | None
    ) -> HostLayer:
        plan, like = self.plan, self._likes[index]
        if self._shared is None:
            q_heads, kv_heads, _ = heads_of(text)
            far = [self._likes[number] for number in plan.host_layers]
            self._shared = Shared(
                conveyor=Conveyor(self._link, far, max(1, plan.strip_tokens)),
                split=Split(most=plan.strip_tokens, fixed=passing),
                cooperate=cooperate,
                group=q_heads // kv_heads,
                cpu=self._cpu,
                layers=[],
            )
        room = Room(like, plan.context, self._link.host_array)
        layer = HostLayer(room, codec, self._link, self._shared)
        self._shared.layers.append(layer)
        return layer
