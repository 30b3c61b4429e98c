"""Predictors that travel with an image, in the workflow that SaveImage writes into its file.

ComfyUI's page sends its workflow with each prompt, and keeps the `extra` of a workflow that it has read from
an image. So a node writes its predictor there, as a code. When the image's workflow runs again with the same
widgets on the same checkpoint, the node uses that predictor, even if the file is not in the library. Only
what the workflow carried when it was sent is used, not what a node of the same run has written.

A node whose cached result ComfyUI reuses writes nothing: an image made after a cached Load or Apply node
carries only the predictors of other nodes."""

import copy
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from ...amed import Fitted, PredictorError
from ...amed.choose import Identity, Report
from ...amed.files.code import code_of, from_code
from ..host.folders import FOLDER, library

KEY, FROM_WORKFLOW = "amed", ", from the workflow"
LATEST = 4  # runs whose metadata are kept; ComfyUI runs one at a time


def load_named(name: str) -> Fitted:
    """Load a predictor file of the library by its name.

    Raises PredictorError, with the most similar name, if there is no such file."""
    if name not in (names := library().names()):
        similar = get_close_matches(name, names, n=1, cutoff=0.3)
        nearest_name = "".join(f" The nearest is {n!r}." for n in similar)
        raise PredictorError(
            f"there is no predictor {name!r} in models/{FOLDER} or in this pack.{nearest_name}\n"
            "Choose another, copy the file there, or paste the predictor as text (`code` of AMED Predictor "
            "Info) into Load AMED Predictor."
        )
    return library().load(name)


def workflow_entries(png: Any, create: bool = False) -> dict:
    """Return the predictors that are stored in a workflow, by node id, each as the JSON dict it is stored as.

    Args:
        png: ComfyUI's EXTRA_PNGINFO, which has the workflow.
        create: whether to add an empty dict to the workflow if it stores no predictors yet."""
    holder = png.get("workflow") if isinstance(png, dict) else None
    for key in ("extra", KEY):
        if not isinstance(holder, dict):
            return {}
        if create and not isinstance(holder.get(key), dict):
            holder[key] = {}
        holder = holder.get(key)
    return holder if isinstance(holder, dict) else {}


@dataclass
class Metadata:
    """The metadata that ComfyUI saves with the images of one run: nodes add predictors and reports."""

    png: dict  # ComfyUI's EXTRA_PNGINFO
    sent: dict  # the pack's entries in the workflow as it was sent, by node id
    # what the nodes have written since, by node id, one per different item of a node's list of inputs:
    written: dict[str, list[dict]] = field(default_factory=dict)  # entries with predictors
    reports: dict[str, list[dict]] = field(default_factory=dict)


_metadata: list[Metadata] = []  # of the latest runs, the newest last


def metadata_of(png: Any) -> Metadata | None:
    """Return the image metadata of the graph's current run; None if ComfyUI passes none.

    png: ComfyUI's EXTRA_PNGINFO, the same dict for all nodes of one run."""
    if not isinstance(png, dict):
        return None
    metadata = next((known for known in _metadata if known.png is png), None)
    if metadata is None:
        metadata = Metadata(png, copy.deepcopy(workflow_entries(png)))
        _metadata[:] = [*_metadata[1 - LATEST :], metadata]
    return metadata


def write_predictor(
    png: Any, node_id: str | None, widgets: dict, fitted: Fitted, model_identity: Identity | None = None
) -> None:
    """Write a node's predictor into the workflow that ComfyUI saves in images.

    Plain solvers, which are not fitted to a model, are not written, because every installation has them.

    Args:
        png: ComfyUI's EXTRA_PNGINFO, which has the workflow.
        node_id: the node's id.
        widgets: values of the node's inputs that determine the predictor, e.g. sampler and nfe.
        fitted: the predictor.
        model_identity: the checkpoint that the predictor runs on."""
    metadata = metadata_of(png)
    if metadata is None or not (fitted.spec.model_family or fitted.spec.model_fingerprint):
        return
    entry = {"name": fitted.name.removesuffix(FROM_WORKFLOW), "code": code_of(fitted), "for": widgets}
    entry["checkpoint"] = model_identity.fingerprint if model_identity else ""
    if model_identity and model_identity.signature and not model_identity.same(fitted.spec.identity):
        entry["signature"] = model_identity.signature  # otherwise the code has it
    written = metadata.written.setdefault(str(node_id), [])
    if entry not in written:
        written.append(entry)
    entries = workflow_entries(png, create=True)
    entries[str(node_id)] = written[0] if len(written) == 1 else list(written)


def carried_predictor(
    png: Any, node_id: str | None, widgets: dict, model_identity: Identity | None = None
) -> Fitted | None:
    """Return the predictor that was stored in the workflow for a node before this run, or None.

    Args:
        png: ComfyUI's EXTRA_PNGINFO, which has the workflow.
        node_id: the node's id.
        widgets: values of the node's inputs, e.g. sampler and nfe; a predictor that was stored with other
            values is ignored.
        model_identity: the checkpoint that the predictor must be for; None: any.

    Raises:
        PredictorError: if the stored predictor is damaged, or for another checkpoint."""
    metadata = metadata_of(png)
    entry = metadata.sent.get(str(node_id)) if metadata else None
    first_error = None
    for item in entry if isinstance(entry, list) else [entry]:
        if not isinstance(item, dict) or item.get("for") != widgets:
            continue
        try:
            return read_entry(item, model_identity)
        except PredictorError as error:
            first_error = first_error or error
    if first_error is not None:
        raise first_error
    return None


def read_entry(entry: dict, model_identity: Identity | None) -> Fitted:
    """Read a predictor from the JSON dict in which a workflow stores it.

    Raises PredictorError if it is damaged, or not for the checkpoint `model_identity` (None: any)."""
    fitted = from_code(str(entry.get("code")), "the workflow's predictor")
    spec = fitted.spec
    if model_identity is not None:
        ran_on = Identity("", str(entry.get("checkpoint")), str(entry.get("signature", "")))
        same = model_identity.same(spec.identity) or model_identity.same(ran_on)
        if not same and (spec.identity.known or spec.model_family != model_identity.family):
            raise PredictorError(
                f"the workflow's predictor is for another checkpoint ({spec.model_name}): load that "
                "checkpoint, or use a predictor for this one"
            )
    return replace(fitted, name=str(entry.get("name"))[:100] + FROM_WORKFLOW)


def write_report(png: Any, node_id: str | None, report: Report, guidance: float) -> None:
    """Write a sampling report (predictor, evaluations, notes) into the metadata that is saved with images.

    It is stored under "amed" and the node's id. If the node runs several times, because a list is linked to
    an input, a list of reports is stored."""
    metadata = metadata_of(png)
    if metadata is None:
        return
    spec = report.fitted.spec if report.fitted else None
    entry = {
        "predictor": report.fitted.name if report.fitted else None,
        "solver": spec.sampler if spec and spec.learned else spec and spec.solver,
        "evaluations": report.evaluations,
        "passes": report.passes,
        "guidance": guidance,
        "checkpoint": spec.model_fingerprint if spec else "",
        "notes": list(report.remarks),
        "text": report.text(),
    }
    reports = metadata.reports.setdefault(str(node_id), [])
    reports.append(entry)
    png.setdefault(KEY, {})[str(node_id)] = entry if len(reports) == 1 else list(reports)
