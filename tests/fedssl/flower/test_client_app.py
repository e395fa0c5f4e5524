"""A node's work between a message and its answer."""

import pytest

pytest.importorskip("flwr", reason="the extra fedssl[flower] is not installed")

from fedssl.data.clients import ClientData, ClientDatasets
from fedssl.flower.client_app import _share


class Counted(ClientData):
    num_clients, loaded = 1, 0

    def setup(self, stage: str) -> None:
        self.loaded += 1
        self.datasets = ClientDatasets([[]], None)  # type: ignore[list-item]


def test_a_node_loads_the_data_set_once() -> None:
    data = Counted()
    assert _share(data, 0) is _share(data, 0)
    assert data.loaded == 1
    with pytest.raises(ValueError, match="client-id 1: the run has clients 0 to 0"):
        _share(data, 1)
