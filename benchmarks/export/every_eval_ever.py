"""Records of Every Eval Ever: one aggregate per model, and one line per image and accuracy.

The fields are those of schema 0.3.0 (https://github.com/evaleval/every_eval_ever), whose package has the
checker. They include all that schema 0.2.1 requires of an aggregate.
"""

import hashlib
import json
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..._files import sha256_of, write_atomically, write_json
from ..statistics import Drawn, Proportion
from ..suites.model import CLEAN
from .content import Content, deciding_rows

__all__ = ["write_every_eval_ever"]

SCHEMA_VERSION = "0.3.0"


def write_every_eval_ever(content: Content, out: Path) -> tuple[Path, ...]:
    """Writes the two files of every model, at their paths in the data store."""
    now = str(int(time.time()))
    return tuple(path for model in content.results.models for path in _write(content, out, model, now))


def _write(content: Content, out: Path, model: str, now: str) -> tuple[Path, Path]:
    suite, owner, repository = content.results.suite.name, content.owner_of(model), content.repository(model)
    # A second export of a run replaces the first: the name is derived from the run, in the form of a UUID 4.
    digest = hashlib.sha256(f"{content.results.run} {owner} {model}".encode()).digest()
    name = uuid.UUID(bytes=digest[:16], version=4)
    place = f"data/{suite}/{owner}/{repository}"
    aggregate, samples = out / place / f"{name}.json", out / place / f"{name}_samples.jsonl"
    identity = f"{owner}/{repository}"
    shared = {"schema_version": SCHEMA_VERSION, "evaluation_id": f"{suite}/{identity}/{now}"}
    accuracies = list(content.accuracies(model))
    lines = 0
    with write_atomically(samples) as part, part.open("w", encoding="utf-8") as file:
        for drawn in accuracies:
            for line in _instances(content, drawn):
                file.write(json.dumps({**shared, "model_id": identity, **line}) + "\n")
                lines += 1
    record = {
        **shared,
        "retrieved_timestamp": now,
        "source_metadata": {
            "source_name": "genrobust",
            "source_type": "evaluation_run",
            "source_organization_name": content.owner or "unknown",
            "evaluator_relationship": "other",
            "additional_details": _details(run=content.results.run, suite=suite),
        },
        "eval_library": _library(content),
        "model_info": _model(content, model),
        "evaluation_results": [_result(content, drawn) for drawn in accuracies],
        "detailed_evaluation_results": {
            "format": "jsonl",
            "file_path": f"{place}/{samples.name}",
            "hash_algorithm": "sha256",
            "checksum": sha256_of(samples),
            "total_rows": lines,
        },
    }
    write_json(aggregate, record)
    return aggregate, samples


def _library(content: Content) -> dict[str, Any]:
    versions = dict(content.results.manifest["versions"])
    version = versions.pop("genrobust", "unknown")
    return {"name": "genrobust", "version": version, "additional_details": _details(**versions)}


def _model(content: Content, model: str) -> dict[str, Any]:
    owner, origin = content.owner_of(model), content.origin(model)
    settings = {k: v for k, v in content.results.manifest["models"][model].items() if k != "behaviour"}
    return {
        "name": content.results.suite.model(model).title,
        "id": f"{owner}/{content.repository(model)}",
        "developer": owner,
        "additional_details": _details(
            deployment_type="self_deployed",
            model_availability="open_weights" if origin == "shipped" else "unknown",
            weights_from=origin or "unknown",
            settings=json.dumps(settings, sort_keys=True),
        ),
    }


def _result(content: Content, drawn: Drawn) -> dict[str, Any]:
    row, share = drawn.row, drawn.majority
    dataset = content.results.manifest["dataset"]
    parameters: dict[str, Any] = {"draws": content.results.suite.draws}
    if row.norm is not None:
        parameters |= {"norm": row.norm, "epsilon": row.epsilon}
    command = content.results.manifest.get("command")
    run_by = {"generation_config": {"generation_args": {"execution_command": command}}} if command else {}
    return {
        "evaluation_result_id": row.key,
        "evaluation_name": _name(content, drawn),
        "source_data": {
            "dataset_name": content.dataset,
            "source_type": "other",
            "additional_details": _details(split=content.split, sha256=dataset.get("sha256", "unknown")),
        },
        "metric_config": {
            "evaluation_description": content.described(drawn),
            "metric_id": "accuracy" if row.norm is None else "robust_accuracy",
            "metric_name": "Accuracy" if row.norm is None else "Robust accuracy",
            "metric_kind": "accuracy",
            "metric_unit": "proportion",
            "metric_parameters": parameters,
            "lower_is_better": False,
            "score_type": "continuous",
            "min_score": 0.0,
            "max_score": 1.0,
        },
        "score_details": {
            "score": share.value,
            "details": _details(
                decided_by="majority of draws",
                first_draw=_written(drawn.first),
                majority=_written(share),
                worst_draw=_written(drawn.worst),
                attacks=", ".join(attack.key for attack in content.attacks(row, drawn.model)),
            ),
            "uncertainty": {
                "confidence_interval": {
                    "lower": share.low,
                    "upper": share.high,
                    "confidence_level": 0.95,
                    "method": "Wilson",
                },
                "num_samples": share.total,
            },
        },
        **run_by,
    }


def _instances(content: Content, drawn: Drawn) -> Iterator[dict[str, Any]]:
    """Yields what decides about each image, for one accuracy of a model."""
    results = content.results
    decided = results.rows.take(deciding_rows(results, drawn.model, drawn.row))
    for batch in decided.to_batches(1000):
        for found in batch.to_pylist():
            correct = found["attack"] == CLEAN and found["right"]  # else some attack decides
            yield _instance(content, drawn, found, correct=correct)


def _instance(content: Content, drawn: Drawn, found: Mapping[str, Any], *, correct: bool) -> dict[str, Any]:
    shown = f"{content.dataset}/{content.split}/{found['sample']}"
    reference = str(found["label"])
    answer = "rejected" if found["rejected"] else str(found["prediction"])
    told = ("attack", "toolkit", "norm", "epsilon", "clean_prediction", "attempts", "claimed", "unstable")
    draws = [f"{what}{by}" for what in ("right", "success") for by in ("_first", "", "_worst")]
    length = {} if drawn.row.norm is None else {"distance": found[f"distance_{drawn.row.norm}"]}
    return {
        "evaluation_name": _name(content, drawn),
        "evaluation_result_id": drawn.row.key,
        "sample_id": str(found["sample"]),
        "sample_hash": hashlib.sha256(f"{shown}{reference}".encode()).hexdigest(),
        "interaction_type": "single_turn",
        "input": {"raw": shown, "reference": [reference]},
        "output": {"raw": [answer]},
        "answer_attribution": [
            {
                "turn_idx": 0,
                "source": "output.raw",
                "extracted_value": answer,
                "extraction_method": "argmax of the logits, by the first draw",
                "is_terminal": True,
            }
        ],
        "evaluation": {"score": float(correct), "is_correct": correct},
        "metadata": _details(**{name: found[name] for name in (*told, *draws)}, **length),
    }


def _name(content: Content, drawn: Drawn) -> str:
    row = drawn.row
    bound = "" if row.norm is None else f" {row.norm} {row.epsilon:g}"
    return f"{content.results.suite.name} {row.key}{bound}"


def _written(share: Proportion) -> str:
    return f"{share.count} of {share.total}"


def _details(**values: Any) -> dict[str, str]:
    """Returns what is known as the strings that the schema asks for."""
    return {name: str(value) for name, value in values.items() if value is not None}
