"""The kept images of a run as a Croissant data set: a Parquet file, and metadata as JSON-LD.

The metadata follow Croissant 1.1 (http://mlcommons.org/croissant/1.1). An image is stored as float32, because
8 bits would move it: a verdict is about the exact pixels.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..._files import sha256_of, write_atomically, write_json
from ..run.cells import SCHEMA, Cell, plan
from ..run.results import Results
from .content import Content, kept_images

__all__ = ["write_croissant"]

DATA, METADATA = "examples.parquet", "croissant.json"

# Every column of the rows that readers of images need, and what it is.
COLUMNS: Mapping[str, str] = {
    "model": "Name of the model that was judged.",
    "attack": "Key of the attack; `clean` for the unperturbed images.",
    "toolkit": "The toolkit of the attack; null for clean images.",
    "target": "Whose examples were transferred to the model; null if the model itself was attacked.",
    "norm": "Norm of the threat model; null for clean images.",
    "epsilon": "Radius of the threat model; null for clean images and minimal-norm attacks.",
    "sample": "Index of the image in the split.",
    "label": "Its class.",
    "goal": "The class that a targeted attack goes for; null for any other attack.",
    "clean_prediction": "The model's decision about the clean image, by the first draw.",
    "prediction": "The model's decision about this image, by the first draw; null if it is undefined.",
    "rejected": "Whether the model rejects this image, by the majority of its draws.",
    "claimed": "Whether the toolkit says that the attack succeeded.",
    "valid": "Whether the image is finite and in [0, 1].",
    "right_first": "Whether the model is right about the clean image, by the first draw.",
    "right": "Whether the model is right about the clean image, by the majority of its draws.",
    "right_worst": "Whether the model is right about the clean image, by every draw.",
    "success_first": "Whether the attack has a verified success, by the first draw.",
    "success": "Whether the attack has a verified success, by the majority of the model's draws.",
    "success_worst": "Whether the attack has a verified success, by any draw.",
    "distance_l0": "Number of changed pixels.",
    "distance_l1": "L1 length of the perturbation.",
    "distance_l2": "L2 length of the perturbation.",
    "distance_linf": "Largest change of a value.",
}
IMAGE = "image"

_CONTEXT: Mapping[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "description": {"@container": "@language"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
    **{
        term: f"cr:{term}"
        for term in (
            *("arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "extract", "field"),
            *("fileObject", "fileProperty", "fileSet", "format", "includes", "isArray", "isLiveDataset"),
            *("jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex"),
            *("repeated", "replace", "samplingRate", "separator", "source", "subField", "transform"),
        )
    },
}


def write_croissant(content: Content, out: Path) -> tuple[Path, ...]:
    """Writes the images with their rows, and the metadata, whose file is the last.

    Raises:
        ValueError: If the run kept no images, or one of their files is missing or damaged.
    """
    data, metadata = out / DATA, out / METADATA
    shape = _write_rows(content.results, data)
    write_json(metadata, _metadata(content, data, shape))
    return metadata, data


def _write_rows(results: Results, path: Path) -> tuple[int, ...]:
    """Writes one cell after another, and returns the shape of one image."""
    fields = [SCHEMA.field(name) for name in COLUMNS]
    schema = pa.schema([*fields, pa.field(IMAGE, pa.list_(pa.float32()), nullable=False)])
    shape: tuple[int, ...] = ()
    with write_atomically(path) as part, pq.ParquetWriter(part, schema) as writer:
        start = 0
        for cell in plan(results.suite, results.models, len(results.samples)):
            rows, start = _rows_of(results, cell, start)
            images = kept_images(results, cell)
            shape = images.shape[1:]
            flat = pa.array(list(images.reshape(len(images), -1)), pa.list_(pa.float32()))
            columns = [rows[name].combine_chunks() for name in COLUMNS]
            writer.write_table(pa.table([*columns, flat], schema=schema))
    return shape


def _rows_of(results: Results, cell: Cell, start: int) -> tuple[pa.Table, int]:
    """Returns the rows of a cell, which follow those of the cell before, and where the next one's begin."""
    size = results.suite.batch_size
    count = len(results.samples[cell.batch * size : (cell.batch + 1) * size])
    return results.rows.slice(start, count), start + count


def _metadata(content: Content, data: Path, shape: tuple[int, ...]) -> dict[str, Any]:
    results = content.results
    titles = ", ".join(results.suite.model(model).title for model in results.models)
    attacks = ", ".join(f"{attack.title} ({attack.norm})" for attack in results.suite.attacks)
    name = f"{results.suite.name}-adversarial-examples"
    return {
        "@context": _CONTEXT,
        "@type": "Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": name,
        "description": (
            f"{content.split.capitalize()} images of {content.dataset} and adversarial examples of them: "
            f"every image that was judged, with its verdict. Models: {titles}. Attacks: {attacks}. A success "
            f"is verified by the majority of {results.suite.draws} draws of the model's noise, if it draws "
            f"any. {content.provenance}."
        ),
        "version": results.manifest["versions"].get("genrobust", "0.0.0"),
        "keywords": ["adversarial examples", "adversarial robustness", content.dataset],
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": DATA,
                "name": DATA,
                "description": "One row per image.",
                "contentUrl": DATA,
                "contentSize": f"{data.stat().st_size} B",
                "encodingFormat": "application/x-parquet",
                "sha256": sha256_of(data),
            }
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "examples",
                "name": "examples",
                "description": "The judged images.",
                "field": list(_fields(shape)),
            }
        ],
    }


def _fields(shape: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    for name, description in COLUMNS.items():
        yield _field(name, description, _data_type(SCHEMA.field(name).type))
    text = "The judged image, with values from 0 to 1, as channels, height and width."
    array = {"isArray": True, "arrayShape": ",".join(map(str, shape))}
    yield {**_field(IMAGE, text, "sc:Float"), **array}


def _field(name: str, description: str, kind: str) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"examples/{name}",
        "name": name,
        "description": description,
        "dataType": kind,
        "source": {"fileObject": {"@id": DATA}, "extract": {"column": name}},
    }


def _data_type(kind: pa.DataType) -> str:
    names = {pa.string(): "sc:Text", pa.int64(): "sc:Integer", pa.bool_(): "sc:Boolean"}
    return names.get(kind, "sc:Float")
