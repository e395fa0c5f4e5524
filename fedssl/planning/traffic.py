"""What a run will send, found by playing its rounds without training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fedssl.costs.forecast import Forecast
from fedssl.protocol.messages import num_bytes
from fedssl.protocol.parts import SplitModel
from fedssl.server.calibration import Calibration
from fedssl.server.client_stage import client_stage, typical_choices
from fedssl.server.participation import Participation
from layerwise import Scheme, Stage


@dataclass(frozen=True)
class RoundTraffic:
    """Of one round.

    Args:
        stage: Position of its stage.
        down: Bytes that each participant receives, by client id.
        up: Bytes that each participant sends; none if it has too few images to train on.
        seconds: Duration on the devices, ``None`` if they are not known.
        fills: Clients that fill their banks.
    """

    stage: int
    down: dict[int, int]
    up: dict[int, int]
    seconds: float | None
    fills: set[int]


@dataclass(frozen=True)
class ClientTraffic:
    """Of one client in one stage.

    Args:
        rounds: Rounds it took part in.
        down_bytes: Received from the server.
        up_bytes: Sent to the server.
        fills: Rounds in which it filled its bank.
    """

    rounds: int
    down_bytes: int
    up_bytes: int
    fills: int


class RoundPlayer:
    """Plays the rounds of a run without training.

    Cohorts and depth dropout are those that the run with this seed draws, and a frozen part is sent to a client exactly
    if it changed since the client received it, as the server does. Updates
    that fail or come too late are not foreseen, and a selector sees no losses.

    Args:
        model: Has the sizes of all parts.
        scheme: Says which blocks a client holds of a stage.
        participation: Draws the clients of every round; used up by the play.
        forecast: What a stage asks of a client.
        calibration: Changes frozen parts, if any.
        seed: Of the run.
        share: Which of a scheme's choices a client takes; ``None`` asks its device.
    """

    def __init__(
        self,
        model: SplitModel,
        scheme: Scheme,
        participation: Participation,
        forecast: Forecast,
        calibration: Calibration | None,
        seed: int,
        share: Callable[[int, Sequence[Stage]], Stage] | None = None,
    ) -> None:
        self._share = share or participation.share
        self._model = model
        self._scheme = scheme
        self._participation = participation
        self._forecast = forecast
        self._calibration = calibration
        self._seed = seed
        self._sizes = {name: num_bytes(model.read([name])) for name in model.modules}
        self._version: dict[str, int] = defaultdict(int)
        self._held: dict[int, dict[str, int]] = defaultdict(dict)
        self._banks: dict[int, object] = {}

    def play(self, stages: list[Stage]) -> list[RoundTraffic]:
        """Traffic of every round."""
        played: list[RoundTraffic] = []
        for number, stage in enumerate(stages):
            self._participation.begin_stage(stage)
            played += [self._round(number, stage, len(played) + i, i + 1 == stage.rounds) for i in range(stage.rounds)]
        return played

    def _round(self, number: int, stage: Stage, round_: int, last: bool) -> RoundTraffic:
        down, up, shares, changed, fills = {}, {}, {}, set(), set()
        choices = typical_choices(self._scheme, stage, self._seed)
        for client in self._participation.draw(round_, *choices).participants:
            share = self._share(client, choices)
            own = client_stage(self._scheme, stage, share, client, round_, self._seed)
            shares[client] = share
            trained = self._model.trained_names(own)
            active = self._bytes(trained)
            down[client] = active + self._bytes(self._missing(client, self._model.frozen_names(own)))
            trains = self._participation.images[client] > 1
            if trains and self._fills(client, (number, self._period(round_)), self._model.frozen_names(own)):
                fills.add(client)
            up[client] = active if trains else 0
            changed.update(trained if trains else [])
        if self._calibration and self._calibration.due(bool(changed), last):
            changed.update(self._model.trained_names(stage), self._model.frozen_names(stage))
        for name in changed:
            self._version[name] += 1
        return RoundTraffic(number, down, up, self._advance_clock(shares, down, up, fills), fills)

    def _period(self, round_: int) -> int:
        return self._forecast.bank.period(round_) if self._forecast.bank else 0

    def _fills(self, client: int, when: tuple[int, int], frozen: list[str]) -> bool:
        """Whether a client's bank, if there are any, is not yet what it has to be; it is from now on."""
        content = when, tuple((name, self._version[name]) for name in frozen)
        if not self._forecast.bank or not frozen or self._banks.get(client) == content:
            return False
        self._banks[client] = content
        return True

    def _missing(self, client: int, frozen: list[str]) -> list[str]:
        """Frozen parts that a client does not hold; it does from now on."""
        held = self._held[client]
        missing = [name for name in frozen if held.get(name) != self._version[name]]
        held.update({name: self._version[name] for name in frozen})
        return missing

    def _bytes(self, names: Iterable[str]) -> int:
        return sum(self._sizes[name] for name in names)

    def _advance_clock(
        self, shares: dict[int, Stage], down: dict[int, int], up: dict[int, int], fills: set[int]
    ) -> float | None:
        fleet = self._participation.fleet
        if not fleet:
            return None
        limit = fleet.deadline.seconds if fleet.deadline else float("inf")
        images = self._participation.images
        macs = {client: self._forecast(share, images[client]).macs for client, share in shares.items()}
        for client in fills:
            macs[client] += self._forecast.filling_macs(shares[client], images[client])
        done = [fleet.profiles[client].seconds(down[client], macs[client], up[client]) for client in down if up[client]]
        return fleet.advance([min(seconds, limit) for seconds in done])


def by_client(played: Iterable[RoundTraffic], num_stages: int, num_clients: int) -> list[list[ClientTraffic]]:
    """Sums of rounds: for each stage, one entry a client."""
    totals = [[[0, 0, 0, 0] for _ in range(num_clients)] for _ in range(num_stages)]
    for each in played:
        for client, down in each.down.items():
            entry = totals[each.stage][client]
            entry[0] += 1
            entry[1] += down
            entry[2] += each.up[client]
            entry[3] += client in each.fills
    return [[ClientTraffic(*entry) for entry in stage] for stage in totals]
