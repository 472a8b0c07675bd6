import asyncio
import threading

from helpers.observer import Observer


def run_apart(coroutine):
    # asyncio.run would drop the loop that nbmake sets for the whole pytest process
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(coroutine)


class Counter:
    def __init__(self):
        self.seen, self.gate = [], threading.Event()

    def observe(self, prediction, seconds):
        assert self.gate.wait(10)
        self.seen.append(prediction)


def test_what_a_monitor_cannot_keep_up_with_is_dropped_and_counted(caplog):
    monitor = Counter()
    observer = Observer(monitor, capacity=3)

    async def run():
        async with observer.running():
            observer.put(0, 0.1)
            await asyncio.sleep(0.05)  # the monitor has the first
            for number in range(1, 8):
                observer.put(number, 0.1)
            monitor.gate.set()

    run_apart(run())
    assert monitor.seen == [0, 1, 2, 3]
    assert observer.dropped == 4
    assert "the monitor is slower than the predictions; 1 went unobserved" in caplog.text


def test_without_a_monitor_nothing_happens():
    observer = Observer(None)

    async def run():
        async with observer.running():
            observer.put(1, 0.1)

    run_apart(run())
    assert observer.dropped == 0
