from segue.experiments.bench_slow_cable import table

DECISION = {"action": "move", "why": "a message takes 9 times as long"}


def result(*steps: int) -> dict:
    turns = {"unanswered": [0.3, 0.31, 0.9], "agent": [0.15, 0.16, 0.155], "one host": [0.31, 0.31, 0.31]}
    return {
        "steps": [0.1] * 20 + [0.3] * 20,
        "before": 20,
        "turns": turns,
        "decisions": [{"step": step, **DECISION} for step in steps],
    }


def test_the_table_compares_medians_and_says_when_the_agent_moved() -> None:
    text = table(result(3, 26))
    assert "moved 6 steps after the drop" in text
    assert "-50%" in text
    assert "+0%" in text
    assert "step 26: move: a message takes 9 times as long" in text


def test_the_table_says_when_the_agent_did_not_move() -> None:
    assert "did not move" in table(result(3))
