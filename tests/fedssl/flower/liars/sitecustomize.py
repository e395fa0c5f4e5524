"""On the path of a node's processes: its ClientApp answers what ``LIE`` says instead of what it trained."""

import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

APP = "fedssl.flower.client_app"


def not_a_number(app: Any) -> None:
    _change_arrays(app, lambda numbers: numbers * float("nan"))


def wrong_shape(app: Any) -> None:
    _change_arrays(app, lambda numbers: numbers.reshape(-1)[:1])


def malformed(app: Any) -> None:
    from flwr.app import ConfigRecord, RecordDict

    app.encode_answer = lambda *_: RecordDict({"note": ConfigRecord({"json": "{"})})


def _change_arrays(app: Any, change: Callable[[Any], Any]) -> None:
    from flwr.app import Array, RecordDict

    honest = app.encode_answer

    def encode(answer: Any, withheld: Sequence[str] = ()) -> RecordDict:
        content = honest(answer, withheld)
        record = content.array_records["parts"]
        name = next(key for key, array in record.items() if array.dtype == "float32")
        record[name] = Array(change(record[name].numpy().copy()))
        return content

    app.encode_answer = encode


class Liar(MetaPathFinder):
    """Changes the ClientApp when it is imported."""

    def find_spec(self, name: str, path: Sequence[str] | None, _: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == APP else None
        if spec and spec.loader:
            load = spec.loader.exec_module

            def load_and_change(module: ModuleType) -> None:
                load(module)
                globals()[os.environ["LIE"]](module)

            spec.loader.exec_module = load_and_change  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Liar())
