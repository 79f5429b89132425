"""What a type checker says of the package's names: mypy reads this file, nobody runs it."""

from collections.abc import Iterator
from typing import Any, assert_type

import numpy as np

from tipsomaly import ImageError, Pipeline, PromptEnsemble, Region, Result

pipe = Pipeline.from_pretrained("nano", image_size=448, domain=PromptEnsemble(("{}",), ("broken {}",)), mode="fixed")

assert_type(pipe("a.png"), Result)
assert_type(pipe(["a.png", np.zeros((8, 8, 3), np.uint8)], class_name="zipper"), list[Result])
assert_type(pipe.stream(["a.png"]), Iterator[Result])
assert_type(pipe.stream(["a.png"], errors="raise"), Iterator[Result])
assert_type(pipe.stream(["a.png"], errors="yield"), Iterator[Result | ImageError])
assert_type(pipe.compare("a.png"), dict[str, Result])

for result in pipe.stream(["a.png", b"..."], class_name="zipper"):
    assert_type(result.score, float)
    assert_type(result.is_anomalous, bool | None)
    assert_type(result.anomaly_map, np.ndarray[tuple[Any, ...], np.dtype[Any]])
    assert_type(result.regions(0.5), list[Region])
