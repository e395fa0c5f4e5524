"""Figures of clients: one by one while they are few, together when they are many."""

from dataclasses import replace

import numpy as np
import pytest

from fedssl.runs.report.client_figures import MOST_CLIENTS, distribution, each_client, shown_clients
from fedssl.runs.report.record import ClientDetails
from fedssl.runs.report.theme import as_png, as_svg, heat_map


def clients(number: int) -> ClientDetails:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 9, (number, 3))
    return ClientDetails(np.asarray(["a", "b", "c"]), images, *(rng.integers(0, 5, number) for _ in range(5)))


def test_few_clients_have_a_bar_each() -> None:
    (axes,) = each_client(np.arange(MOST_CLIENTS), "rounds").axes
    assert len(axes.patches) == MOST_CLIENTS


@pytest.mark.parametrize("values", [np.arange(10_000) % 7, np.linspace(0, 1, 10_000), np.zeros(10_000)])
def test_many_clients_are_counted_together(values: np.ndarray) -> None:
    figure = each_client(values, "rounds")
    (axes,) = figure.axes
    assert len(axes.patches) <= 41
    assert sum(patch.get_height() for patch in axes.patches) == 10_000
    assert len(as_svg(figure, "", "x")) < 50_000


def test_of_many_clients_an_even_part_is_shown() -> None:
    assert shown_clients(3).tolist() == [0, 1, 2]
    shown = shown_clients(10_000)
    assert (len(shown), shown[0], shown[-1]) == (MOST_CLIENTS, 0, 9_999)
    assert set(np.diff(shown)) <= {50, 51}
    many = clients(10_000)
    assert as_svg(distribution(many), "", "x").count("</text>") < 60
    assert len(as_svg(distribution(many), "", "x")) < 100_000
    assert as_png(distribution(replace(many, images=many.images[:1])))


@pytest.mark.parametrize("name", ["$", "a$b", "$x$", r"$\frac$", "$$", "x_{$}$y$", "_", "back\\slash", "%", "{", "^"])
def test_a_class_may_have_any_name(name: str) -> None:
    figure = heat_map(np.ones((2, 2)), [name, "a"], ["b", name], (name, "column"))
    assert as_png(figure)
    assert ">" + name.replace("&", "&amp;") + "<" in as_svg(figure, name, "x")
