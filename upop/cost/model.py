"""What a plan costs: parameters and FLOPs in closed form, and latency by a table of measured times.

What cannot be cut is measured once on the dense model; what can be cut follows from the sites and the number of tokens
that pass through each layer. A budget needs no trial cutting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from upop.cost.counting import Measured
from upop.cost.latency import LatencyTable
from upop.messages import closest
from upop.structure import CURRENCIES, Attention, Currency, Cut, Kind, Layer, Modality, Side, Site


@dataclass(frozen=True)
class Share:
    """What the sites of one modality and kind hold and what a plan takes from them.

    Attributes:
        modality: Tower.
        kind: ``head``, ``head_dim``, ``neuron``, or ``head x head_dim`` where a block has both.
        sites: Number of sites.
        units: Units of the dense sites.
        units_kept: Units that the plan keeps.
        params: Prunable parameters of the dense sites.
        params_removed: Parameters that the plan removes.
        flops: Prunable FLOPs of the dense sites, per sample.
        flops_removed: FLOPs that the plan removes, per sample.
        latency: Prunable nanoseconds of the dense sites, per forward pass of the batch; ``None`` where not measured.
        latency_removed: Nanoseconds that the plan removes.
    """

    modality: Modality
    kind: str
    sites: int
    units: int
    units_kept: int
    params: int
    params_removed: int
    flops: int
    flops_removed: int
    latency: int | None = None
    latency_removed: int | None = None


class CostModel:
    """Cost of any plan for one model.

    Args:
        sites: All sites that a plan may name.
        measured: What :func:`~upop.cost.counting.measure` found on the dense model.
        latency: Measured times of the model; without them, latency is no currency.

    Raises:
        ValueError: If two sites see one side of a layer in different shapes, a stream has no token count, or the times
            are those of another model.
    """

    def __init__(self, sites: Sequence[Site], measured: Measured, latency: LatencyTable | None = None) -> None:
        if latency is not None:
            latency.check(sites)
        self.sites = tuple(sites)
        self.measured = measured
        self.latency = latency
        self._blocks = {site.block: site.modality for site in sites}
        self._cuts: dict[tuple[str, Side], list[tuple[str, Cut]]] = {}
        self._layers: dict[str, tuple[Layer, Modality]] = {}
        self._attention: dict[str, tuple[Attention, Modality, dict[Kind, str]]] = {}
        for site in sites:
            for cut in site.cuts:
                shared = self._cuts.setdefault((cut.layer.name, cut.side), [])
                if shared and shared[0][1].view != cut.view:
                    raise ValueError(f"sites see the {cut.side} side of {cut.layer.name} in different shapes")
                if cut.layer.tokens not in measured.tokens:
                    raise ValueError(f"no token count for stream {cut.layer.tokens!r} of {cut.layer.name}")
                shared.append((site.name, cut))
                self._layers[cut.layer.name] = (cut.layer, site.modality)
            if site.attention:
                entry = self._attention.setdefault(site.attention.name, (site.attention, site.modality, {}))
                entry[2][site.kind] = site.name
        self._nothing = {site.name: 0 for site in sites}

    @property
    def currencies(self) -> tuple[Currency, ...]:
        """What costs can be asked in."""
        return CURRENCIES if self.latency is None else (*CURRENCIES, "latency")

    def with_latency(self, latency: LatencyTable | None) -> CostModel:
        """The same with these measured times.

        Raises:
            ValueError: If they are those of another model.
        """
        return CostModel(self.sites, self.measured, latency)

    def whole(self, currency: Currency) -> int:
        """Cost of the whole dense model."""
        self._check(currency)
        if currency == "latency":
            return self._table.whole
        return self.measured.params if currency == "params" else self.measured.flops

    def prunable(self, currency: Currency, modality: str | None = None) -> int:
        """Cost of everything that units own, of one modality or of all."""
        return self.removed(self._nothing, currency, modality)

    def removed(self, kept: Mapping[str, int], currency: Currency, modality: str | None = None) -> int:
        """Cost that is gone when ``kept`` units stay per site.

        Args:
            kept: Units kept by site name; a site that is not named stays whole.
            currency: ``params``, ``flops`` (per sample) or ``latency`` (nanoseconds of a forward pass of the batch).
            modality: Count this tower only.
        """
        self._check(currency)
        return self._cost({}, currency, modality) - self._cost(kept, currency, modality)

    def remaining(self, kept: Mapping[str, int], currency: Currency) -> int:
        """Cost of the whole model after the cut."""
        return self.whole(currency) - self.removed(kept, currency)

    def shares(self, kept: Mapping[str, int]) -> list[Share]:
        """What is removed where: one row per modality and kind, in the order of the sites.

        Heads and head-dims of one block multiply, so a block with both is one row.
        """
        blocks: dict[str, list[Site]] = {}
        for site in self.sites:
            blocks.setdefault(site.block, []).append(site)
        groups: dict[tuple[Modality, str], list[Site]] = {}
        for block in blocks.values():
            groups.setdefault((block[0].modality, " x ".join(site.kind for site in block)), []).extend(block)
        return [self._share(modality, kind, sites, kept) for (modality, kind), sites in groups.items()]

    def _share(self, modality: Modality, kind: str, sites: Sequence[Site], kept: Mapping[str, int]) -> Share:
        part = CostModel(sites, self.measured, self.latency)
        return Share(
            modality,
            kind,
            len(sites),
            sum(site.units for site in sites),
            sum(kept.get(site.name, site.units) for site in sites),
            part.prunable("params"),
            part.removed(kept, "params"),
            part.prunable("flops"),
            part.removed(kept, "flops"),
            part.prunable("latency") if self.latency else None,
            part.removed(kept, "latency") if self.latency else None,
        )

    def _cost(self, kept: Mapping[str, int], currency: Currency, modality: str | None) -> int:
        """Cost of the layers (and attentions) that sites cut, whole rows and columns that nobody owns included."""
        if currency == "latency":
            blocks = [block for block, tower in self._blocks.items() if modality is None or tower == modality]
            return sum(self._table.time(block, kept) for block in blocks)
        total = 0
        for layer, tower in self._layers.values():
            if modality is None or tower == modality:
                rows, columns = self._features(layer, "out", kept), self._features(layer, "in", kept)
                if currency == "params":
                    total += rows * columns + (rows if layer.bias else 0)
                else:
                    total += 2 * self.measured.tokens[layer.tokens] * rows * columns
        if currency == "flops":
            total += sum(
                self._products(attention, names, kept)
                for attention, tower, names in self._attention.values()
                if modality is None or tower == modality
            )
        return total

    def _features(self, layer: Layer, side: Side, kept: Mapping[str, int]) -> int:
        cuts = self._cuts.get((layer.name, side))
        if not cuts:
            return layer.out_features if side == "out" else layer.in_features
        view = list(cuts[0][1].view)
        for name, cut in cuts:
            view[cut.dim] = kept.get(name, view[cut.dim])
        return math.prod(view)

    def _products(self, attention: Attention, names: Mapping[Kind, str], kept: Mapping[str, int]) -> int:
        """FLOPs of queries x keys and of weights x values."""
        heads = kept.get(names.get("head", ""), attention.heads)
        head_dim = kept.get(names.get("head_dim", ""), attention.head_dim)
        keys = self.measured.tokens[attention.keys] // self.measured.sequences.get(attention.keys, 1)
        return 4 * self.measured.tokens[attention.queries] * keys * heads * head_dim

    @property
    def _table(self) -> LatencyTable:
        if self.latency is None:
            raise ValueError(
                "the latency of this model was not measured; set search.of to 'latency', which measures it, or ask for "
                f"one of {sorted(self.currencies)}"
            )
        return self.latency

    def _check(self, currency: str) -> None:
        """Refuse a currency that does not exist, or that was not measured."""
        if currency == "latency":
            _ = self._table
        elif currency not in CURRENCIES:
            known = sorted(self.currencies)
            raise ValueError(f"unknown currency {currency!r}; known: {known}{closest(currency, known)}")
