"""The whole report: what `scripts/report.py` makes of a folder of predictions, or of two files."""

import base64
import json
import logging
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cropvlm.runs.cli import COMPLETE_WITH_FAILURES
from cropvlm.runs.files import check_writable, write_json, write_text
from reporting import plots, tables
from reporting.claims import Claims
from reporting.costs import costs
from reporting.examples import examples
from reporting.gains import Pair, pair_up, pairs
from reporting.matching import differences
from reporting.need import NeedCurve
from reporting.plan import only_command
from reporting.results import Result, read_box_files, read_folder
from reporting.verdicts import NOT_REPRODUCED, NOT_RUN, Verdict, judge

logger = logging.getLogger(__name__)

MANY = 5  # trainings, whose spread is known to a third
FILES = ("report.md", "report.json", "report.html")


@dataclass(frozen=True)
class Report:
    """Results, their pairs with and without the crop, and the verdicts on a claims file.

    runs: the claims file for each of several trainings; empty where two files are compared.
    """

    results: list[Result]
    pairs: list[Pair]
    runs: list[Claims] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def claims(self) -> Claims | None:
        return self.runs[0] if self.runs else None

    @property
    def title(self) -> str:
        return self.claims.title if self.claims else f"{self.results[0].path.name} against {self.results[1].path.name}"

    @property
    def sides(self) -> tuple[str, str]:
        """The names of the two results of a pair."""
        return ("without", "with crop") if self.claims else ("B", "A")

    @property
    def notes(self) -> list[str]:
        """The limits of the verdicts, in words."""
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

    @cached_property
    def curves(self) -> list[NeedCurve]:
        """Whether to crop, for the pairs whose boxes all have a need, and whose rows all got their crop."""
        whole = [pair for pair in self.pairs if pair.after.settings.get("need_threshold") is None]
        return [NeedCurve(pair) for pair in whole if pair.after.needs is not None]

    @property
    def shown_pair(self) -> Pair | None:
        """The pair whose questions are shown: the claims file's choice if it was run, else the first."""
        shown = self.claims and self.claims.shown
        chosen = [pair for pair in self.pairs if shown and differences(shown, pair.after, self.claims) == ()]
        return next(iter(chosen or self.pairs), None)

    def tables(self) -> dict[str, list[tables.Row]]:
        """Return the rows of each table by its heading, without empty ones."""
        against = "With the crop against without" if self.claims else "A against B"
        listed = {
            "Figures and claims": [tables.verdict_row(verdict) for verdict in self.verdicts],
            against: [tables.pair_row(pair, *self.sides) for pair in self.pairs],
            "Where the gain comes from": [row for pair in self.pairs for row in tables.gain_rows(pair)],
            "Whether to crop": [tables.need_row(curve) for curve in self.curves],
            "Scores and costs": tables.file_rows(self.results),
            "Trainings of the croppers": tables.cropper_rows(self.runs, self.results),
        }
        return {heading: rows for heading, rows in listed.items() if rows}

    def plots(self) -> list[tuple[str, str]]:
        """Return caption and SVG of each plot."""
        sized = [pair for pair in self.pairs if pair.region_areas]
        drawn = [("Gain by the size of the region", plots.draw_gains_by_size(sized))] if sized else []
        return drawn + [(f"Whether to crop: {curve.pair.name}", plots.draw_need(curve)) for curve in self.curves]

    def content(self) -> dict[str, Any]:
        """Return what `report.json` holds."""
        files = [
            {"file": str(result.path), "setting": result.name, "cost": costs(result), "metric": result.scored.metric}
            | result.scored.summary()
            for result in self.results
        ]
        shown = [
            {"file": str(pair.after.path), "other": str(pair.before.path), "score": pair.after.scored.mean}
            | pair.comparison
            for pair in self.pairs
        ]
        gains = [
            {"file": str(pair.after.path), "parts": pair.parts, "stolen": pair.stolen, "made_worse": pair.made_worse}
            for pair in self.pairs
            if pair.controls
        ]
        need = [curve.summary | {"cost": curve.cost} for curve in self.curves]
        return {
            "title": self.claims and self.claims.title,
            "source": self.claims and self.claims.source,
            "notes": self.notes,
            "verdicts": [vars(verdict) for verdict in self.verdicts],
            "files": files,
            "pairs": shown,
            **({"gains": gains} if gains else {}),
            **({"need": need} if need else {}),
        }


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
    compared = pairs(results, [result for result in known if result.control])
    for result in results:
        settings = ((claims, setting) for claims in runs for setting in claims.known(result.benchmark))
        fitting = (setting for claims, setting in settings if differences(setting, result, claims) == ())
        result.name = next((setting.title for setting in fitting), result.name)
    return Report(results, compared, runs, judge(runs, known, lambda s: runs[0].command or only_command(s)))


def compare_files(predictions_file: Path, other: Path) -> Report:
    """Return the report on two answer files for the same questions; boxes are looked for beside them."""
    folders = dict.fromkeys([predictions_file.parent, other.parent])
    boxes = [file for folder in folders for file in read_box_files(folder.glob("[!.]*_bbox.json"))]
    first, second = (Result(path, boxes) for path in (predictions_file, other))
    return Report([first, second], [pair_up(first, second)])


def write(report: Report, folder: Path, example_count: int) -> None:
    """Write `FILES` into a folder. Raises `UserError` where it cannot be written."""
    text, data, page = (folder / name for name in FILES)
    for path in (text, data, page):
        check_writable(path)
    content = report.content()
    write_json(data, json.loads(json.dumps(content), parse_constant=lambda _: None))  # nan: null
    listed, pair = report.tables(), report.shown_pair
    source = f"Reported values: {report.claims.source}.\n" if report.claims else ""
    notes = "".join(f"- {note}\n" for note in report.notes)
    parts = [f"## {heading}\n\n{tables.markdown_table(rows)}\n" for heading, rows in listed.items()]
    _write_text(text, "\n".join([f"# {report.title}\n", source, notes, *parts]))
    shown = {
        "title": report.title,
        "tables": listed,
        "plots": [(caption, base64.b64encode(svg.encode()).decode()) for caption, svg in report.plots()],
        "examples": examples(pair, example_count) if pair else [],
        "labels": [*report.sides, pair.name] if pair else [],
    }
    loader = FileSystemLoader(Path(__file__).parent)
    template = Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("page.html")
    _write_text(page, template.render(content | shown))


def _write_text(path: Path, text: str) -> None:
    """Write a text; what models have written in it may have no UTF-8."""
    write_text(path, text.encode(errors="backslashreplace").decode())


def summary(report: Report) -> str:
    """Return what the script prints: a line for each verdict but `not run`, and how many of those there are."""
    lines = [_in_a_line(verdict) for verdict in report.verdicts if verdict.verdict != NOT_RUN]
    if not report.claims:
        lines += [", ".join(tables.pair_row(pair, *report.sides, name=report.title).values()) for pair in report.pairs]
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
