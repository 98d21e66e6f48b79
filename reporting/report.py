"""The whole report: what `scripts/report.py` makes of a folder of predictions, or of two files."""

import base64
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cropvlm.errors import UserError
from cropvlm.runs.cli import COMPLETE_WITH_FAILURES
from cropvlm.runs.files import check_writable, write_json
from reporting import need, plots, tables
from reporting.claims import Claims, Setting
from reporting.costs import costs
from reporting.examples import examples
from reporting.gains import Gain, gains
from reporting.matching import differences
from reporting.pairs import Pair, pair_up, pairs
from reporting.plan import only_command
from reporting.results import Result, read_box_file, read_folder, read_result, with_meta
from reporting.verdicts import NOT_REPRODUCED, NOT_RUN, Verdict, judge

logger = logging.getLogger(__name__)

MANY = 5  # trainings, whose spread is known to a third
FILES = ("report.md", "report.json", "report.html")


@dataclass(frozen=True)
class Report:
    """Results, their pairs with and without the crop, and the verdicts on a claims file (None: two files alone).

    gains: of the pairs that have controls. runs: the claims file for each of several trainings.
    """

    results: list[Result]
    pairs: list[Pair]
    runs: list[Claims] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    gains: list[Gain] = field(default_factory=list)

    @property
    def claims(self) -> Claims | None:
        return self.runs[0] if self.runs else None

    @property
    def notes(self) -> list[str]:
        """What a reader has to know of the verdicts."""
        if not self.claims:
            return []
        margin, runs = self.claims.margin, len(self.runs)
        found = [f"Margin of the figures: {margin:g} points; {self.claims.reason}."] if margin else []
        if runs == 1:
            found.append("Every cropper was trained once: the intervals hold the noise of questions, not of training.")
        else:
            found.append(f"{runs} trainings: the intervals hold the noise of questions and of training.")
        if 1 < runs < MANY:
            found[-1] += " Of so few, that of training is itself uncertain."
        return found + [f"Assumed of {a.title}: {a.assumed}." for a in self.claims.answerers.values() if a.assumed]

    @property
    def exit_code(self) -> int:
        not_reproduced = any(verdict.verdict == NOT_REPRODUCED for verdict in self.verdicts)
        return COMPLETE_WITH_FAILURES if not_reproduced else 0

    @property
    def title(self) -> str:
        return self.claims.title if self.claims else f"{self.results[0].path.name} against {self.results[1].path.name}"

    @cached_property
    def need_curves(self) -> list[need.NeedCurve]:
        return need.need_curves(self.pairs)

    def need_cost(self, curve: need.NeedCurve) -> need.Cost:
        before, after = (self.costs[self.results.index(result)] for result in (curve.pair.before, curve.pair.after))
        key = "image_tokens_per_question"
        if before[key] is None or after[key] is None:
            return need.Cost(before["images_per_question"], after["images_per_question"], 1, "images")
        return need.Cost(before[key], after[key], after.get(f"cropper_{key}"), "visual tokens")

    @cached_property
    def costs(self) -> list[dict]:
        return [costs(result) for result in self.results]

    def name(self, result: Result) -> str:
        """Return the name of what a result was made with: its setting's in the claims file, else from its meta file."""
        for claims in self.runs:
            for setting in claims.known(result.benchmark):
                if differences(setting, result, claims) == ():
                    return setting.title
        size = result.settings.get("longest_edge") or result.settings.get("max_pixels")
        answerer = Path(result.answerer).name + (f", {size} px" if size else "")
        cropper = Path(result.boxes.cropper).name if result.boxes else "crop" if result.with_crop else "no crop"
        return f"{result.benchmark}: {answerer}, {cropper}"

    @property
    def shown_pair(self) -> Pair | None:
        """The pair whose questions are shown: the claims file's choice if it was run, else the first."""
        if self.claims and self.claims.shown:
            for pair in self.pairs:
                if differences(self.claims.shown, pair.after, self.claims) == ():
                    return pair
        return self.pairs[0] if self.pairs else None


def judge_folder(folder: Path, runs: list[Claims]) -> Report:
    """Return the report on the answer files below a folder, of the benchmarks that the claims file knows.

    runs: the claims file for each of several trainings.
    """
    found = read_folder(folder)
    benchmarks = {name for claims in runs for name in claims.benchmarks}
    known = [result for result in found if result.benchmark in benchmarks]
    if len(known) < len(found):
        logger.warning("%d answer files of other benchmarks are left out", len(found) - len(known))
    results = [result for result in known if result.control is None and result.settings.get("need_threshold") is None]
    compared = pairs(results)

    def command(settings: Sequence[Setting]) -> str:
        return runs[0].command or only_command(settings)

    verdicts = judge(runs, known, command)
    return Report(results, compared, runs, verdicts, gains(compared, [r for r in known if r.control]))


def compare_files(predictions_file: Path, other: Path) -> Report:
    """Return the report on two answer files for the same questions; boxes are looked for beside them."""
    folders = dict.fromkeys([predictions_file.parent, other.parent])
    boxes = [read_box_file(path) for folder in folders for path in with_meta(folder.glob("[!.]*_bbox.json"))]
    first, second = (read_result(path, boxes) for path in (predictions_file, other))
    return Report([first, second], [pair_up(first, second)])


def write(report: Report, folder: Path, example_count: int) -> None:
    """Write `FILES` into a folder. Raises `UserError` where it cannot be written."""
    paths = {name: folder / name for name in FILES}
    for path in paths.values():
        check_writable(path)
    head = {
        "title": report.claims and report.claims.title,
        "source": report.claims and report.claims.source,
        "notes": report.notes,
    }
    content = head | {
        "verdicts": [vars(verdict) for verdict in report.verdicts],
        "files": [
            {"file": str(result.path), "setting": report.name(result), "cost": cost, "metric": result.scored.metric}
            | result.scored.summary()
            for result, cost in zip(report.results, report.costs, strict=True)
        ],
        "pairs": [
            {"file": str(pair.after.path), "other": str(pair.before.path), "score": pair.after.scored.mean}
            | pair.comparison
            for pair in report.pairs
        ],
    }
    if report.gains:
        content["gains"] = [gain.summary() for gain in report.gains]
    if report.need_curves:
        content["need"] = [curve.summary() | {"cost": vars(report.need_cost(curve))} for curve in report.need_curves]
    write_json(paths["report.json"], json.loads(json.dumps(content), parse_constant=lambda _: None))  # nan: null
    listed, pair = _tables(report), report.shown_pair
    _write_text(paths["report.md"], _markdown(report, listed))
    before, after = ("without", "with crop") if report.claims else ("B", "A")
    causes = next((gain.causes for gain in report.gains if gain.pair is pair), None)
    content = head | {
        "title": report.title,
        "tables": listed,
        "plots": [(caption, base64.b64encode(svg.encode()).decode()) for caption, svg in _plots(report)],
        "examples": examples(pair, example_count, causes) if pair else [],
        "labels": {"before": before, "after": after, "of": report.name(pair.after) if pair else ""},
    }
    loader = FileSystemLoader(Path(__file__).parent)
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("page.html")
    _write_text(paths["report.html"], page.render(content))


def summary(report: Report) -> str:
    """Return what the script prints: a line for each verdict but `not run`, and how many of those there are."""
    lines = [_in_a_line(verdict) for verdict in report.verdicts if verdict.verdict != NOT_RUN]
    if report.claims is None:
        lines += [", ".join(tables.pair_row(pair, report.title, "B", "A").values()) for pair in report.pairs]
    if not_run := sum(verdict.verdict == NOT_RUN for verdict in report.verdicts):
        lines.append(f"- not run: {not_run} figures and claims; the report has their commands")
    return "\n".join([*lines, *report.notes])


def _in_a_line(verdict: Verdict) -> str:
    reason = f" ({verdict.reason})" if verdict.reason else ""
    is_figure = verdict.kind == "figure"
    reported = f"reported {verdict.reported:g} +- {verdict.margin:g}" if is_figure else verdict.reported
    ours = ""
    if verdict.interval_95:
        ours = f": {verdict.ours:.1f}, 95% interval [{verdict.interval_95[0]:.1f}, {verdict.interval_95[1]:.1f}]"
        ours += f" over {verdict.over}" if verdict.over else ""
    return f"- {verdict.verdict}{reason}: {verdict.title}{ours} ({reported})"


def _tables(report: Report) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return heading, columns and rows of each table."""
    against, sides = (
        ("With the crop against without", ("without", "with")) if report.claims else ("A against B", ("B", "A"))
    )
    needs = [need.need_row(c, report.name(c.pair.after), report.need_cost(c)) for c in report.need_curves]
    names = [report.name(result) for result in report.results]
    listed = {
        "Figures and claims": [tables.verdict_row(verdict) for verdict in report.verdicts],
        against: [tables.pair_row(pair, report.name(pair.after), *sides) for pair in report.pairs],
        "Where the gain comes from": [
            row for gain in report.gains for row in tables.gain_rows(gain, report.name(gain.pair.after))
        ],
        "Whether to crop": [dict(zip(need.COLUMNS, cells, strict=True)) for cells in needs],
        "Scores and costs": tables.file_rows(report.results, names, report.costs),
        "Trainings of the croppers": tables.cropper_rows(report.runs, report.results),
    }
    return [(heading, [*rows[0]], [[*row.values()] for row in rows]) for heading, rows in listed.items() if rows]


def _plots(report: Report) -> list[tuple[str, str]]:
    """Return caption and SVG of each plot."""
    names = [report.name(result) for result in report.results]
    of_pairs = [report.name(pair.after) for pair in report.pairs]
    drawn = []
    if report.results:
        drawn.append(("Scores", plots.draw_scores(report.results, names)))
    if any(pair.region_areas for pair in report.pairs):
        drawn.append(("Gain by the size of the region", plots.draw_gains_by_size(report.pairs, of_pairs)))
    for curve in report.need_curves:
        picture = plots.draw_need(curve, report.need_cost(curve))
        drawn.append((f"Whether to crop: {report.name(curve.pair.after)}", picture))
    return drawn


def _markdown(report: Report, listed: Sequence[tuple]) -> str:
    source = f"Reported values: {report.claims.source}.\n" if report.claims else ""
    parts = [f"## {heading}\n\n{tables.markdown_table(columns, rows)}\n" for heading, columns, rows in listed]
    notes = "".join(f"- {note}\n" for note in report.notes)
    return "\n".join([f"# {report.title}\n", source, notes, *parts])


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
