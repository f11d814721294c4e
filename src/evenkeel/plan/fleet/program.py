"""An integer program and its solution by HiGHS: columns, rows, the best value that can be had.  Pure arithmetic.

One thread, a fixed seed: the same program gives the same answer, unless a time limit cuts it short, which
:attr:`Solution.cut_short` tells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import highspy
import numpy as np

#: Seconds spent, best value so far (None: none yet), bound.
OnGap = Callable[[float, float | None, float], None]


@dataclass
class Program:
    """To be maximised.  Every column is at least 0."""

    gains: list[float] = field(default_factory=list)
    uppers: list[float] = field(default_factory=list)
    integral: list[bool] = field(default_factory=list)
    lows: list[float] = field(default_factory=list)
    highs: list[float] = field(default_factory=list)
    _rows: list[int] = field(default_factory=list)
    _columns: list[int] = field(default_factory=list)
    _values: list[float] = field(default_factory=list)

    def column(self, gain: float, upper: float = highspy.kHighsInf, *, integral: bool = True) -> int:
        self.gains.append(gain)
        self.uppers.append(upper)
        self.integral.append(integral)
        return len(self.gains) - 1

    def row(self, *, low: float = -highspy.kHighsInf, high: float = highspy.kHighsInf) -> int:
        self.lows.append(low)
        self.highs.append(high)
        return len(self.lows) - 1

    def settle(self, row: int) -> None:
        """Nothing may be put into this row any more."""
        self.highs[row] = 0.0

    def put(self, row: int, column: int, value: float) -> None:
        self._rows.append(row)
        self._columns.append(column)
        self._values.append(value)

    def solve(
        self,
        *,
        time_limit_s: float | None = None,
        gap: float = 0.0,
        relaxed: bool = False,
        start: Sequence[float] | None = None,
        on_gap: OnGap | None = None,
        most_nodes: int | None = None,
    ) -> Solution:
        """``relaxed``: as a linear program, with the price of each row.  ``gap``: stop that near to the bound.

        ``most_nodes``: of the search tree, a limit of effort that does not depend on a clock.
        """
        solver = highspy.Highs()  # type: ignore[no-untyped-call]
        solver.setOptionValue("output_flag", False)
        solver.setOptionValue("threads", 1)
        solver.setOptionValue("random_seed", 0)
        solver.setOptionValue("mip_rel_gap", gap)
        if time_limit_s is not None:
            solver.setOptionValue("time_limit", float(time_limit_s))
        if most_nodes is not None:
            solver.setOptionValue("mip_max_nodes", most_nodes)
        solver.passModel(self._model(relaxed))
        if start is not None and not relaxed:
            given = highspy.HighsSolution()
            given.col_value = list(start)
            solver.setSolution(given)
        if on_gap is not None and not relaxed:
            solver.cbMipLogging.subscribe(lambda event: on_gap(*_progress(event.data_out)))
        solver.run()
        status = solver.getModelStatus()
        done = status in (highspy.HighsModelStatus.kOptimal, highspy.HighsModelStatus.kModelEmpty)
        found = solver.getSolution()
        info = solver.getInfo()
        if not self.gains:
            return Solution([], 0.0, 0.0, [], cut_short=False, feasible=True)
        feasible = done or info.primal_solution_status == 2
        values = list(found.col_value) if feasible else []
        bound = -float(info.mip_dual_bound) if not relaxed else -float(info.objective_function_value)
        prices = [-price for price in found.row_dual] if relaxed and feasible else []
        return Solution(
            values=values,
            value=-float(info.objective_function_value) if feasible else float("-inf"),
            bound=bound,
            prices=prices,
            cut_short=status == highspy.HighsModelStatus.kTimeLimit,
            feasible=feasible,
        )

    def _model(self, relaxed: bool) -> highspy.HighsLp:
        columns, rows = len(self.gains), len(self.lows)
        order = np.lexsort((np.array(self._rows, dtype=np.int64), np.array(self._columns, dtype=np.int64)))
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = columns, rows
        model.col_cost_ = -np.array(self.gains, dtype=float)
        model.col_lower_ = np.zeros(columns)
        model.col_upper_ = np.array(self.uppers, dtype=float)
        model.row_lower_ = np.array(self.lows, dtype=float)
        model.row_upper_ = np.array(self.highs, dtype=float)
        model.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        counts = np.bincount(np.array(self._columns, dtype=np.int64), minlength=columns) if columns else np.zeros(0)
        model.a_matrix_.start_ = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
        model.a_matrix_.index_ = np.array(self._rows, dtype=np.int32)[order]
        model.a_matrix_.value_ = np.array(self._values, dtype=float)[order]
        if not relaxed:
            kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
            model.integrality_ = [kinds[whole] for whole in self.integral]
        return model


@dataclass(frozen=True)
class Solution:
    """``bound``: no solution is worth more.  ``prices``: what one more of each row would be worth (relaxed only)."""

    values: list[float]
    value: float
    bound: float
    prices: list[float]
    cut_short: bool
    feasible: bool


def _progress(data: Any) -> tuple[float, float | None, float]:
    best = -float(data.mip_primal_bound)
    return float(data.running_time), best if abs(best) < 1e30 else None, -float(data.mip_dual_bound)
