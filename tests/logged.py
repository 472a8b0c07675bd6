"""Prediction logs with rows of known content, for tests of what reads them."""

import time

from helpers.monitoring.log_row import COLUMNS
from helpers.monitoring.running_statistics import RunningStatistics


class Filler:
    """Appends rows to a log as a server would; `rows` are all of them, as dicts by column."""

    def __init__(self, log):
        self.log, self.rows, self._statistics = log, [], RunningStatistics()

    def fill(self, count, **changes):
        new = []
        for number in range(len(self.rows) + 1, len(self.rows) + count + 1):
            index = number * 7 % 100
            seconds, average, _, average_index, mode = self._statistics.update(number / 1000, index).values()
            values = (time.time(), f"request-{number}", 0, "tiny", "20261101T120000Z-0123456789ab", index)
            values += (
                f"class_{index:02d}",
                0.5,
                f'{{"class_{index:02d}": 0.5}}',
                seconds,
                average,
                average_index,
                mode,
            )
            new.append(dict(zip(COLUMNS, (*values, '{"brightness": 0.25}', None), strict=True)) | changes)
        self.log.accept(count)
        self.log.append([tuple(row.values()) for row in new])
        self.rows += new
