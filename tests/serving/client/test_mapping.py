"""Many rows at once, in threads and in tasks: order, errors, how far ahead rows are read."""

from __future__ import annotations

import asyncio
import io
import threading
import time

import pytest

from iblip.export.errors import EngineError, InputError, OptionError
from iblip.serving.client.mapping import AHEAD, RowResult, map_rows, map_rows_async
from iblip.serving.client.tally import Line, MapProgress


class Echo:
    """Answers with the prompt, the later the shorter it is; counts how many calls overlap."""

    def __init__(self):
        self.running = self.most = 0
        self.lock = threading.Lock()

    def __call__(self, question):
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            time.sleep(0.02 / (1 + len(question.prompt)))
            return self.answer(question)
        finally:
            with self.lock:
                self.running -= 1

    @staticmethod
    def answer(question):
        if question.prompt == "fail":
            raise EngineError("it fails")
        if question.prompt == "bug":
            raise ZeroDivisionError
        return (question.image, question.prompt, dict(question.arguments))


class AsyncEcho(Echo):
    async def __call__(self, question):
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.02 / (1 + len(question.prompt)))
        self.running -= 1
        return self.answer(question)


def run(rows, **how):
    return list(map_rows(Echo(), rows, **how))


def run_async(rows, **how):
    async def collect():
        return [result async for result in map_rows_async(AsyncEcho(), rows, **how)]

    return asyncio.run(collect())


both = pytest.mark.parametrize("run", [run, run_async])


@both
def test_results_come_in_the_order_of_the_rows(run):
    rows = [(number, "?" * (number % 7)) for number in range(100)]
    results = run(rows, concurrency=8)
    assert [result.index for result in results] == list(range(100))
    assert [result.unwrap()[:2] for result in results] == rows


@both
def test_a_row_may_be_a_mapping_with_arguments_of_its_own(run):
    (result,) = run([{"image": "a.png", "prompt": "What?", "max_new_tokens": 3}])
    assert result.unwrap() == ("a.png", "What?", {"max_new_tokens": 3})


@both
def test_a_row_that_fails_is_an_error_of_that_row(run):
    rows = [
        ("a", "one"),
        ("a", "fail"),
        ("a", "bug"),
        "row",
        ("a", "b", "c"),
        {"image": 1, "text": 2},
        7,
        ("a", "two"),
    ]
    results = run(iter(rows))
    kinds = [type(result.error) for result in results]
    assert kinds == [type(None), EngineError, ZeroDivisionError, *[InputError] * 4, type(None)]
    assert results[7].unwrap()[1] == "two"
    messages = [str(result.error) for result in results[3:7]]
    assert messages[0].startswith("the row is a str; expected (image, prompt), or a mapping with")
    assert messages[1].startswith("the row is a tuple of 3; expected (image, prompt)")
    assert messages[2] == "the row has 'image', 'text'; expected 'image' and 'prompt'"
    with pytest.raises(EngineError, match="it fails"):
        results[1].unwrap()
    with pytest.raises(EngineError, match="it fails"):
        _ = results[1].text


@both
def test_no_more_questions_are_under_way_than_allowed_and_so_many_are(run, monkeypatch):
    echoes = []
    for kind in (Echo, AsyncEcho):
        monkeypatch.setattr(kind, "answer", lambda self, question: echoes.append(self.most))
    run([("a", "")] * 40, concurrency=4)
    assert max(echoes) == 4


def counted(taken, end=10**9):
    for number in range(end):
        taken.append(number)
        yield (number, "?")


def test_rows_are_read_as_results_are_taken():
    taken = []
    results = map_rows(Echo(), counted(taken), concurrency=3)
    assert not taken
    for number in range(50):
        assert next(results).index == number
        assert len(taken) <= number + 1 + 3 * AHEAD
    results.close()
    assert len(taken) < 50 + 3 * AHEAD + 1


def test_rows_are_read_as_results_are_taken_in_a_loop():
    async def take():
        taken = []
        results = map_rows_async(AsyncEcho(), counted(taken), concurrency=3)
        async for result in results:
            assert len(taken) <= result.index + 1 + 3 * AHEAD
            if result.index == 50:
                break
        await results.aclose()
        return len(asyncio.all_tasks())

    assert asyncio.run(take()) == 1


def test_one_slow_answer_does_not_keep_the_others_waiting():
    ready, first = threading.Event(), []

    def ask(question):
        if question.image == 0:
            ready.wait(60)
        else:
            first.append(question.image)
            if len(first) == 4 * 2 + 3:  # more than were waiting when the slow one began
                ready.set()

    assert next(map_rows(ask, counted([]), concurrency=4)).index == 0
    assert len(first) > 4 * 2


@both
def test_what_the_rows_themselves_raise_comes_after_the_results_before_it(run):
    def rows():
        yield ("a", "one")
        yield ("a", "two")
        raise OSError("the disk is gone")

    seen = []

    def read():
        seen.extend(result.index for result in map_rows(Echo(), rows()))

    async def read_async():
        async for result in map_rows_async(AsyncEcho(), rows()):
            seen.append(result.index)  # noqa: PERF401 (a comprehension would lose those before)

    with pytest.raises(OSError, match="the disk is gone"):
        asyncio.run(read_async()) if run is run_async else read()
    assert seen == [0, 1]


def test_rows_may_come_from_an_asynchronous_generator_that_is_slow():
    async def rows():
        for number in range(3):
            yield (number, "?")
            await asyncio.sleep(0)
        yield (3, "?")
        await answered.wait()  # does not go on before the first results have been taken
        yield (4, "?")

    async def collect():
        global answered
        answered = asyncio.Event()
        indices = []
        async for result in map_rows_async(AsyncEcho(), rows()):
            indices.append(result.index)
            if result.index == 3:
                answered.set()
        return indices

    assert asyncio.run(collect()) == [0, 1, 2, 3, 4]


def test_leaving_early_cancels_what_is_under_way():
    started, stopped = threading.Event(), threading.Event()

    def ask(question):
        if question.image == 0:
            return started.wait(60)
        started.set()
        return stopped.wait(60)

    results = map_rows(ask, counted([]), concurrency=4, cancel=stopped.set)
    assert next(results).answer
    assert not stopped.is_set()
    results.close()
    assert stopped.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("iblip-map")]


def test_leaving_early_cancels_the_tasks():
    begun, cancelled = asyncio.Event(), []

    async def ask(question):
        if question.image == 0:
            await begun.wait()
            return
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(question.image)
            raise

    async def take():
        results = map_rows_async(ask, counted([]), concurrency=4)
        await anext(results)
        await results.aclose()

    asyncio.run(take())
    assert cancelled


def test_nothing_gives_nothing():
    assert run([]) == run_async([]) == []


@pytest.mark.parametrize("concurrency", [0, -1, 1.5, 10**6, None])
@both
def test_a_concurrency_out_of_range_is_refused_at_once(run, concurrency):
    with pytest.raises(OptionError, match=r"concurrency is .*expected an integer from 1 to 1024"):
        run([("a", "b")], concurrency=concurrency)


@pytest.mark.parametrize("rows", ["a.png", {"image": "a"}, 3, None])
@both
def test_what_is_no_list_of_rows_is_refused_at_once(run, rows):
    with pytest.raises(InputError, match=r"rows is .*; expected an iterable of "):
        run(rows)


@both
def test_a_function_is_told_of_each_row(run):
    seen: list[MapProgress] = []
    run([("a", "b"), ("a", "fail"), ("a", "c")], progress=seen.append, concurrency=1)
    assert [(one.done, one.failed, one.total) for one in seen] == [(1, 0, 3), (2, 1, 3), (3, 1, 3)]


@both
def test_progress_is_shown_on_stderr(run, capsys):
    run([("a", "b"), ("a", "fail")], progress=True)
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("rows done: 2 of 2 (1 failed), ")
    run(iter([("a", "b")]), progress=True)
    assert capsys.readouterr().err.startswith("rows done: 1, ")


def test_progress_says_how_long_the_rest_takes():
    text = str(MapProgress(done=10, failed=0, total=1000, elapsed_s=100.0))
    assert text == "rows done: 10 of 1,000, 6.0 a minute, 2 h 45 min left"
    text = str(MapProgress(done=500, failed=1, total=1000, elapsed_s=100.0))
    assert text == "rows done: 500 of 1,000 (1 failed), 5.0 a second, 1 min 40 s left"
    assert str(MapProgress(done=2, failed=0, total=2, elapsed_s=1.0)).endswith("a second")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_has_one_line_that_fits(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    stream, now = Terminal(), [0.0]
    line = Line(stream, clock=lambda: now[0])
    progress = MapProgress(done=500, failed=1, total=1000, elapsed_s=100.0)
    line(progress)
    assert stream.getvalue() == ""
    now[0] = 0.2
    line(progress)
    line.close(progress)
    assert stream.getvalue() == 2 * "\r\x1b[2Krows done: 500 of 1,000 (1 fa" + "\n"


def test_a_result_is_an_answer_or_an_error():
    assert RowResult(index=0, answer=0).unwrap() == 0
